-- A schema with everything that the tests carry: each built-in type, arrays, enums, domains,
-- generated and identity columns, quoted names, partitions, a keyless table, large values, and
-- every kind of key, constraint and index.  It needs an owner of the database, nothing more.
-- Rows come from values.py; writers.py changes them on both sides.

CREATE SCHEMA ev;
CREATE SCHEMA "Odd.Schema ""q""";

CREATE TYPE ev.mood AS ENUM ('sad', 'ok', 'happy', 'it''s "odd", yes', 'Ünï😀');
CREATE TYPE "Odd.Schema ""q"""."Col.our" AS ENUM ('red', 'Green');
CREATE DOMAIN ev.posint AS integer CHECK (VALUE > 0);
CREATE DOMAIN ev.label AS varchar(60) COLLATE "C" DEFAULT 'none' NOT NULL
    CONSTRAINT "label not blank" CHECK (VALUE <> '');
CREATE DOMAIN ev.bigpos AS ev.posint CHECK (VALUE < 2000000000);
CREATE DOMAIN ev.moods AS ev.mood[];

-- One column for each scalar type; the name of a column is in values.py too.
CREATE TABLE ev.scalar (
    id bigint PRIMARY KEY,
    c_bool boolean, c_int2 smallint, c_int4 integer, c_int8 bigint,
    c_numeric numeric, c_numeric_ps numeric(30,5), c_float4 real, c_float8 double precision,
    c_money money,
    c_text text, c_varchar varchar(40), c_bpchar char(10), c_char "char", c_name name, c_bytea bytea,
    c_date date, c_time time, c_time0 time(0), c_timetz timetz, c_timestamp timestamp,
    c_timestamp3 timestamp(3), c_timestamptz timestamptz, c_interval interval,
    c_interval_ds interval day to second(3), c_interval_ym interval year to month,
    c_uuid uuid, c_json json, c_jsonb jsonb, c_jsonpath jsonpath, c_xml xml,
    c_bit bit(9), c_varbit bit varying(70),
    c_inet inet, c_cidr cidr, c_macaddr macaddr, c_macaddr8 macaddr8,
    c_point point, c_line line, c_lseg lseg, c_box box, c_path path, c_polygon polygon, c_circle circle,
    c_tsvector tsvector, c_tsquery tsquery,
    c_pg_lsn pg_lsn, c_oid oid, c_xid xid, c_cid cid, c_tid tid,
    c_txid_snapshot txid_snapshot, c_refcursor refcursor,
    c_int2vector int2vector, c_oidvector oidvector, c_aclitem aclitem,
    c_regclass regclass, c_regtype regtype, c_regproc regproc, c_regprocedure regprocedure,
    c_regoper regoper, c_regoperator regoperator, c_regconfig regconfig,
    c_regdictionary regdictionary, c_regnamespace regnamespace, c_regrole regrole,
    c_int4range int4range, c_int8range int8range, c_numrange numrange, c_tsrange tsrange,
    c_tstzrange tstzrange, c_daterange daterange,
    c_mood ev.mood, c_posint ev.posint, c_bigpos ev.bigpos, c_colour "Odd.Schema ""q"""."Col.our"
);

CREATE TABLE ev.arrays (
    id bigint PRIMARY KEY,
    a_bool boolean[], a_int2 smallint[], a_int4 integer[], a_int8 bigint[], a_numeric numeric[],
    a_float4 real[], a_float8 double precision[], a_money money[], a_text text[],
    a_varchar varchar(20)[], a_bpchar char(3)[], a_bytea bytea[], a_date date[], a_time time[],
    a_timestamp timestamp[], a_timestamptz timestamptz[], a_interval interval[], a_uuid uuid[],
    a_json json[], a_jsonb jsonb[], a_xml xml[], a_bit bit(3)[], a_varbit varbit[], a_inet inet[],
    a_point point[], a_box box[], a_tsvector tsvector[], a_int4range int4range[],
    a_mood ev.mood[], a_posint ev.posint[], a_moods ev.moods
);

-- Types that came with later versions.
DO $do$
BEGIN
    IF current_setting('server_version_num')::int >= 130000 THEN
        ALTER TABLE ev.scalar ADD c_xid8 xid8, ADD c_pg_snapshot pg_snapshot,
            ADD c_regcollation regcollation;
    END IF;
    IF current_setting('server_version_num')::int >= 140000 THEN
        ALTER TABLE ev.scalar ADD c_int4multirange int4multirange, ADD c_int8multirange int8multirange,
            ADD c_nummultirange nummultirange, ADD c_tsmultirange tsmultirange,
            ADD c_tstzmultirange tstzmultirange, ADD c_datemultirange datemultirange;
        ALTER TABLE ev.arrays ADD a_int4multirange int4multirange[];
    END IF;
END
$do$;

-- Keys of every kind; in several of them equal values can have other bytes.
CREATE TABLE ev.key_numeric (k numeric PRIMARY KEY, v text);
CREATE TABLE ev.key_bpchar (k char(8) PRIMARY KEY, v text);
CREATE TABLE ev.key_text (k text PRIMARY KEY, v text);
CREATE TABLE ev.key_bit (k bit(8) PRIMARY KEY, v text);
CREATE TABLE ev.key_varbit (k varbit PRIMARY KEY, v text);
CREATE TABLE ev.key_uuid (k uuid PRIMARY KEY, v text);
CREATE TABLE ev.key_bytea (k bytea PRIMARY KEY, v text);
CREATE TABLE ev.key_float8 (k double precision PRIMARY KEY, v text);
CREATE TABLE ev.key_timestamptz (k timestamptz PRIMARY KEY, v text);
CREATE TABLE ev.key_interval (k interval PRIMARY KEY, v text);
CREATE TABLE ev.key_inet (k inet PRIMARY KEY, v text);
CREATE TABLE ev.key_jsonb (k jsonb PRIMARY KEY, v text);
CREATE TABLE ev.key_array (k text[] PRIMARY KEY, v text);
CREATE TABLE ev.key_mood (k ev.mood PRIMARY KEY, v text);
CREATE TABLE ev.key_three (a integer, b text, c date, v text, CONSTRAINT "three, in its order" PRIMARY KEY (c, a, b));
CREATE TABLE ev.key_unique (k integer NOT NULL, v text);      -- no primary key, a non-null unique index
CREATE UNIQUE INDEX key_unique_k ON ev.key_unique (k);

-- Names that must be quoted, and one of 63 bytes.
CREATE TABLE "Odd.Schema ""q"""."Mixed ""Case"".Table" (
    "Id" integer PRIMARY KEY,
    "Sp ace" text DEFAULT 'it''s',
    "select" integer DEFAULT -1,
    "ünï·ço∂é😀" text,
    "quo""te" numeric(8,2) DEFAULT 0,
    "back\slash" text DEFAULT E'a\\b\nc',
    "percent%s$1" text,
    "a23456789b123456789c123456789d123456789e123456789f123456789g123" "Odd.Schema ""q"""."Col.our"
        DEFAULT 'Green'
);
CREATE INDEX "Index; ""x"".y" ON "Odd.Schema ""q"""."Mixed ""Case"".Table" ("Sp ace" DESC NULLS LAST);

-- Generated and identity columns, serial, defaults, a hole left by a dropped column.
CREATE TABLE ev.gen (
    id bigint PRIMARY KEY,
    a integer NOT NULL,
    total integer GENERATED ALWAYS AS (a * 3 + 1) STORED,
    name text,
    low text GENERATED ALWAYS AS (lower(name) || '!') STORED
);
CREATE TABLE ev.ident_always (
    id bigint GENERATED ALWAYS AS IDENTITY (START WITH 1000001 INCREMENT BY 7 CACHE 3) PRIMARY KEY,
    v text
);
CREATE TABLE ev.ident_default (
    id integer GENERATED BY DEFAULT AS IDENTITY (START WITH 2000000 INCREMENT BY -3 MINVALUE -5 MAXVALUE 2000000 CYCLE) PRIMARY KEY,
    v text
);
CREATE TABLE ev.serials (id serial PRIMARY KEY, small smallserial, big bigserial, v text);
CREATE SEQUENCE ev.free_seq START 7 INCREMENT 11;
CREATE SEQUENCE ev."Owned. Seq" AS integer MAXVALUE 1000000;
CREATE TABLE ev.defaults (
    id bigint DEFAULT nextval('ev.free_seq') PRIMARY KEY,
    gone integer,
    at timestamptz NOT NULL DEFAULT '2001-02-03 04:05:06+00',
    tags text[] DEFAULT ARRAY['x', NULL],
    mood ev.mood DEFAULT 'ok',
    name ev.label,
    also_gone text,
    n integer DEFAULT nextval('ev."Owned. Seq"'),
    doc jsonb NOT NULL DEFAULT '{}'::jsonb
);
ALTER TABLE ev.defaults DROP COLUMN gone, DROP COLUMN also_gone;
ALTER SEQUENCE ev."Owned. Seq" OWNED BY ev.defaults.n;

-- Partitions: by list, below it by range; by hash.
CREATE TABLE ev.part (
    id bigint, region text, at date, v text, PRIMARY KEY (id, region, at)
) PARTITION BY LIST (region);
CREATE TABLE ev.part_eu PARTITION OF ev.part FOR VALUES IN ('eu', 'uk') PARTITION BY RANGE (at);
CREATE TABLE ev.part_eu_old PARTITION OF ev.part_eu FOR VALUES FROM (MINVALUE) TO ('2020-01-01');
CREATE TABLE ev."Part eu.new" PARTITION OF ev.part_eu FOR VALUES FROM ('2020-01-01') TO (MAXVALUE);
CREATE TABLE ev.part_us (at date NOT NULL, v text, id bigint NOT NULL, region text NOT NULL);   -- other order
ALTER TABLE ev.part ATTACH PARTITION ev.part_us FOR VALUES IN ('us');
CREATE TABLE ev.part_rest PARTITION OF ev.part DEFAULT;
CREATE INDEX part_v ON ev.part (v);
CREATE TABLE ev.part_hash (id bigint PRIMARY KEY, v text DEFAULT 'h') PARTITION BY HASH (id);
CREATE TABLE ev.part_hash_0 PARTITION OF ev.part_hash FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE ev.part_hash_1 PARTITION OF ev.part_hash FOR VALUES WITH (MODULUS 2, REMAINDER 1);

-- No key at all: rows may be equal.  side is who wrote it.
CREATE TABLE ev.keyless (side text, n integer, t text, f double precision, j json, p point);

-- Large values, beside columns that change, and in the key.
CREATE TABLE ev.toast (id bigint PRIMARY KEY, small integer, big text, raw bytea);
CREATE TABLE ev.toast_key (k text PRIMARY KEY, small integer, big text);

CREATE TABLE ev.empty (id integer PRIMARY KEY, v text NOT NULL DEFAULT 'x');

-- Foreign keys: simple, cascading, to itself, in a cycle, of two columns.
CREATE TABLE ev.customer (id bigint PRIMARY KEY, name text NOT NULL, boss bigint REFERENCES ev.customer);
CREATE TABLE ev.orders (
    id bigint PRIMARY KEY,
    customer bigint NOT NULL REFERENCES ev.customer ON DELETE CASCADE,
    note text
);
CREATE TABLE ev.item (
    orders bigint REFERENCES ev.orders ON DELETE CASCADE, line integer, what text,
    PRIMARY KEY (orders, line)
);
CREATE TABLE ev.item_note (
    id bigint PRIMARY KEY, orders bigint, line integer,
    FOREIGN KEY (orders, line) REFERENCES ev.item (orders, line) MATCH FULL ON DELETE CASCADE
);
CREATE TABLE ev.cycle_1 (id bigint PRIMARY KEY, other bigint);
CREATE TABLE ev.cycle_2 (id bigint PRIMARY KEY, other bigint REFERENCES ev.cycle_1 DEFERRABLE INITIALLY DEFERRED);
ALTER TABLE ev.cycle_1 ADD CONSTRAINT "round about" FOREIGN KEY (other) REFERENCES ev.cycle_2
    DEFERRABLE INITIALLY DEFERRED;

-- Constraints and indexes.
CREATE TABLE ev.booking (
    id bigint PRIMARY KEY, during int4range NOT NULL,
    CONSTRAINT no_overlap EXCLUDE USING gist (during WITH &&)
);
CREATE TABLE ev.rank (
    id bigint PRIMARY KEY, pos integer NOT NULL,
    CONSTRAINT rank_pos UNIQUE (pos) DEFERRABLE INITIALLY IMMEDIATE
);
CREATE TABLE ev.checks (
    id bigint PRIMARY KEY,
    code varchar(12) NOT NULL UNIQUE,
    low integer CHECK (low >= 0),
    high integer,
    tags text[],
    doc jsonb,
    CONSTRAINT "low < high" CHECK (low < high),
    CONSTRAINT not_checked_yet CHECK (high < 1000000) NOT VALID
);
CREATE INDEX checks_partial ON ev.checks (high) WHERE high > 10;
CREATE INDEX checks_expression ON ev.checks (lower(code), (low + high) DESC);
CREATE INDEX checks_tags ON ev.checks USING gin (tags);
CREATE INDEX checks_doc ON ev.checks USING gin (doc jsonb_path_ops);
CREATE INDEX checks_include ON ev.checks (low) INCLUDE (high, code);
CREATE INDEX checks_pattern ON ev.checks (code varchar_pattern_ops, high NULLS FIRST) WITH (fillfactor = 70);
CREATE INDEX checks_hash ON ev.checks USING hash (code);
CREATE INDEX checks_brin ON ev.checks USING brin (id);
CREATE UNIQUE INDEX checks_unique_part ON ev.checks (low, high) WHERE low < 0;
CREATE INDEX checks_collate ON ev.checks (code COLLATE "C");

-- Inheritance within one schema.
CREATE TABLE ev.parent (id bigint PRIMARY KEY, v text DEFAULT 'p', CONSTRAINT v_short CHECK (length(v) < 100));
CREATE TABLE ev.child (extra text, PRIMARY KEY (id)) INHERITS (ev.parent);

-- Emptied and filled again by one side each.
CREATE TABLE ev.trunc_a (id serial PRIMARY KEY, v text);
CREATE TABLE ev.trunc_b (id serial PRIMARY KEY, v text);
