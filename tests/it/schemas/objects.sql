-- Every kind of object beside tables, in variants: all that schema synchronization creates.
CREATE SCHEMA ob;
COMMENT ON SCHEMA ob IS 'objects; of "all" kinds';

-- Types that no table uses, and types that functions, tables and each other use.
CREATE TYPE ob.mood AS ENUM ('sad', 'o''k', 'very "happy"');
CREATE TYPE ob.lonely AS (a int, b text, c numeric(8,2)[], m ob.mood);
CREATE TYPE ob.nested AS (one ob.lonely, many ob.lonely[]);
COMMENT ON TYPE ob.lonely IS 'it''s; alone';
COMMENT ON COLUMN ob.lonely.b IS 'a column of a type';
CREATE TYPE ob.span AS RANGE (subtype = float8, subtype_diff = float8mi, multirange_type_name = ob.spans);
CREATE FUNCTION ob.is_code(text) RETURNS bool LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS
    $$ SELECT $1 ~ '^[A-Z]+-[0-9]+$' $$;
CREATE DOMAIN ob.code AS text COLLATE "C" CONSTRAINT looks CHECK (ob.is_code(VALUE)) NOT NULL DEFAULT 'A-1';
CREATE DOMAIN ob.codes AS ob.code[] CHECK (cardinality(VALUE) < 100);
CREATE DOMAIN ob.percent AS numeric(5,2) CHECK (VALUE BETWEEN 0 AND 100);
COMMENT ON DOMAIN ob.code IS 'a code';
COMMENT ON CONSTRAINT looks ON DOMAIN ob.code IS 'how it looks';
CREATE DOMAIN ob.unused AS int;

-- Functions that tables use: defaults, checks, generated columns, indexes, partition keys; one calls another.
CREATE SEQUENCE ob.numbers START 100;
CREATE FUNCTION ob.next_number() RETURNS bigint LANGUAGE sql AS $$ SELECT nextval('ob.numbers') $$;
CREATE FUNCTION ob.next_number(prefix text) RETURNS text LANGUAGE plpgsql AS
    $$ BEGIN RETURN prefix || ob.next_number(); END $$;
CREATE FUNCTION ob.fold(t text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT lower(btrim(t))';
CREATE FUNCTION ob.fold(t text, n int) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT left(ob.fold(t), n)';
CREATE FUNCTION ob.plausible(n int, m ob.mood) RETURNS bool LANGUAGE sql IMMUTABLE
    RETURN n > 0 OR m = 'sad'::ob.mood;
CREATE TABLE ob.item (
    id bigint PRIMARY KEY DEFAULT ob.next_number(),
    label text DEFAULT ob.next_number('L'),
    folded text GENERATED ALWAYS AS (ob.fold(label)) STORED,
    n int DEFAULT 1,
    mood ob.mood DEFAULT 'sad',
    code ob.code,
    tags text[] DEFAULT '{}',
    span ob.span,
    at timestamptz DEFAULT now(),
    CONSTRAINT plausible CHECK (ob.plausible(n, mood))
);
CREATE INDEX item_fold ON ob.item (ob.fold(label, 8), (ob.fold(folded))) WHERE ob.plausible(n, mood);
CREATE TABLE ob.child (
    id int PRIMARY KEY, item bigint REFERENCES ob.item ON DELETE CASCADE, amount ob.percent, note text,
    UNIQUE (item, id)
);
CREATE TABLE ob.by_fold (name text, v int) PARTITION BY LIST (ob.fold(name, 1));
CREATE TABLE ob.by_fold_a PARTITION OF ob.by_fold FOR VALUES IN ('a');
CREATE TABLE ob.by_fold_rest PARTITION OF ob.by_fold DEFAULT;

-- Functions: arguments of all modes, every attribute.
CREATE FUNCTION ob.many(a int, VARIADIC rest text[] DEFAULT '{}') RETURNS int LANGUAGE sql AS
    'SELECT a + cardinality(rest)';
CREATE FUNCTION ob.outs(IN a int, OUT b int, INOUT c text DEFAULT 'it''s', OUT "d e" ob.mood) LANGUAGE plpgsql AS
    $$ BEGIN b := a; "d e" := 'sad'; END $$;
CREATE FUNCTION ob.returns_table(lim int DEFAULT 10) RETURNS TABLE (id bigint, "the label" text) ROWS 7 COST 3
    LANGUAGE sql STABLE LEAKPROOF AS 'SELECT id, label FROM ob.item LIMIT lim';
CREATE FUNCTION ob.returns_records() RETURNS SETOF record LANGUAGE sql AS 'SELECT 1, 2';
CREATE FUNCTION ob.returns_nested(ob.nested, ob.lonely[]) RETURNS ob.nested LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION ob.definer(text) RETURNS text LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ob, "Odd Path", pg_temp SET work_mem = '8MB' SET datestyle TO 'ISO, DMY'
    SET TimeZone TO 'Asia/Tokyo' AS
    $body$ BEGIN RETURN $q$ $$ $q$ || $1; END $body$;
CREATE FUNCTION ob.any_of(VARIADIC anyarray) RETURNS anyelement LANGUAGE sql PARALLEL RESTRICTED AS 'SELECT $1[1]';
CREATE FUNCTION ob.any_range(anyrange) RETURNS anyelement LANGUAGE sql AS 'SELECT lower($1)';
CREATE FUNCTION ob.odd_types("char", char(3), varchar(9), timestamptz, time(2), bit varying, int[][], interval, name,
                             double precision, xml, refcursor) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION ob.default_args(a date DEFAULT CURRENT_DATE, b text DEFAULT ob.fold(' X; '), c ob.mood DEFAULT 'sad',
                                d regclass DEFAULT 'ob.item'::regclass) RETURNS text LANGUAGE sql AS 'SELECT b';
CREATE FUNCTION ob.domain_arg(ob.code, ob.codes DEFAULT NULL) RETURNS ob.percent LANGUAGE sql AS 'SELECT 1.0';
CREATE FUNCTION ob.zz_later() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION ob.calls_later() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT ob.zz_later(); END;
CREATE FUNCTION ob.of_column(x ob.item.label%TYPE) RETURNS ob.item.id%TYPE LANGUAGE sql AS 'SELECT 1::bigint';
CREATE FUNCTION ob.ev() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
CREATE FUNCTION ob."comment on"() RETURNS text LANGUAGE sql AS $$ SELECT E'\\a\n;-- "' $$;
COMMENT ON FUNCTION ob."comment on"() IS E'two\nlines; a \\ and a ''quote''';
COMMENT ON FUNCTION ob.odd_types("char", char(3), varchar(9), timestamptz, time(2), bit varying, int[][], interval,
                                 name, double precision, xml, refcursor) IS 'odd';
CREATE PROCEDURE ob.proc(a int, INOUT b int DEFAULT 3, VARIADIC c text[] DEFAULT '{}') LANGUAGE plpgsql AS
    'BEGIN b := a; COMMIT; END';
CREATE PROCEDURE ob.proc_out(OUT x ob.item) LANGUAGE plpgsql AS 'BEGIN END';
CREATE PROCEDURE ob.proc_atomic(i bigint) SECURITY DEFINER LANGUAGE sql BEGIN ATOMIC
    INSERT INTO ob.item (id, code) VALUES (i, 'B-2');
    UPDATE ob.item SET n = n + 1 WHERE id = i;
    DELETE FROM ob.child WHERE item = i;
    END;
COMMENT ON PROCEDURE ob.proc(int, int, text[]) IS 'a procedure';

-- Functions of row types, of tables and of views, with bodies that the catalog knows.
CREATE FUNCTION ob.full_label(ob.item) RETURNS text LANGUAGE sql STABLE AS $$ SELECT $1.label || $1.id $$;
CREATE FUNCTION ob.items(ob.item[]) RETURNS SETOF ob.item LANGUAGE sql RETURN $1[1];
CREATE FUNCTION ob.count_items(above bigint) RETURNS bigint LANGUAGE sql BEGIN ATOMIC
    SELECT count(*) FROM ob.item WHERE id > above AND ob.fold(label) <> '';
    END;

-- Aggregates.
CREATE AGGREGATE ob.total(int) (SFUNC = int4pl, STYPE = int, INITCOND = '0', PARALLEL = SAFE);
CREATE AGGREGATE ob.rows(*) (SFUNC = int8inc, STYPE = int8, INITCOND = '0', COMBINEFUNC = int8pl,
    PARALLEL = RESTRICTED);
CREATE FUNCTION ob.join_step(state text[], v text, sep text) RETURNS text[] LANGUAGE sql IMMUTABLE RETURN state || v;
CREATE FUNCTION ob.join_final(state text[], v text, sep text) RETURNS text LANGUAGE sql IMMUTABLE AS
    $$ SELECT array_to_string(state, '; ') $$;
CREATE FUNCTION ob.join_combine(text[], text[]) RETURNS text[] LANGUAGE sql IMMUTABLE RETURN $1 || $2;
CREATE AGGREGATE ob.joined(v text, sep text) (SFUNC = ob.join_step, STYPE = text[], FINALFUNC = ob.join_final,
    FINALFUNC_EXTRA, FINALFUNC_MODIFY = READ_WRITE, COMBINEFUNC = ob.join_combine, INITCOND = '{"it''s"}', SSPACE = 64);
CREATE AGGREGATE ob.average(int8) (SFUNC = int8_avg_accum, STYPE = internal, SSPACE = 48, FINALFUNC = numeric_poly_avg,
    COMBINEFUNC = int8_avg_combine, SERIALFUNC = int8_avg_serialize, DESERIALFUNC = int8_avg_deserialize,
    MSFUNC = int8_avg_accum, MINVFUNC = int8_avg_accum_inv, MSTYPE = internal, MSSPACE = 96,
    MFINALFUNC = numeric_poly_avg, PARALLEL = SAFE);
CREATE FUNCTION ob.moving(text, int) RETURNS text LANGUAGE sql IMMUTABLE STRICT RETURN $1 || $2;
CREATE FUNCTION ob.moving_back(text, int) RETURNS text LANGUAGE sql IMMUTABLE STRICT RETURN substr($1, 2);
CREATE FUNCTION ob.moving_end(text, int) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT $1';
CREATE AGGREGATE ob.moving_text(int) (SFUNC = ob.moving, STYPE = text, INITCOND = '', MSFUNC = ob.moving,
    MINVFUNC = ob.moving_back, MSTYPE = text, MFINALFUNC = ob.moving_end, MFINALFUNC_EXTRA,
    MFINALFUNC_MODIFY = SHAREABLE, MINITCOND = 'x');
CREATE AGGREGATE ob.largest(int) (SFUNC = int4larger, STYPE = int, SORTOP = OPERATOR(pg_catalog.>));
CREATE AGGREGATE ob.percentile(double precision ORDER BY anyelement) (SFUNC = ordered_set_transition, STYPE = internal,
    FINALFUNC = percentile_disc_final, FINALFUNC_EXTRA);
CREATE AGGREGATE ob.rank_of(VARIADIC "any" ORDER BY VARIADIC "any") (SFUNC = ordered_set_transition_multi,
    STYPE = internal, FINALFUNC = rank_final, FINALFUNC_EXTRA, HYPOTHETICAL);
CREATE FUNCTION ob.mood_step(ob.mood, ob.item) RETURNS ob.mood LANGUAGE sql AS 'SELECT $2.mood';
CREATE AGGREGATE ob.last_mood(ob.item) (SFUNC = ob.mood_step, STYPE = ob.mood, INITCOND = 'o''k');
COMMENT ON AGGREGATE ob.joined(text, text) IS 'it''s joined';
COMMENT ON AGGREGATE ob.rows(*) IS 'of all rows';
COMMENT ON AGGREGATE ob.percentile(double precision ORDER BY anyelement) IS 'in order';

-- Operators: commutator and negator in both orders, of itself, prefix, used by a check, an index, a view.
CREATE FUNCTION ob.mood_eq(ob.mood, text) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT $1::text = $2';
CREATE FUNCTION ob.mood_eq(text, ob.mood) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT $1 = $2::text';
CREATE FUNCTION ob.mood_ne(ob.mood, text) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT $1::text <> $2';
CREATE FUNCTION ob.like_each_other(text, text) RETURNS bool LANGUAGE sql IMMUTABLE RETURN ob.fold($1) = ob.fold($2);
CREATE FUNCTION ob.unlike(text, text) RETURNS bool LANGUAGE sql IMMUTABLE RETURN ob.fold($1) <> ob.fold($2);
CREATE FUNCTION ob.shout(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT upper($1)';
CREATE OPERATOR ob.=== (FUNCTION = ob.mood_eq, LEFTARG = ob.mood, RIGHTARG = text, COMMUTATOR = OPERATOR(ob.===),
    NEGATOR = OPERATOR(ob.<<>>), RESTRICT = eqsel, JOIN = eqjoinsel);
CREATE OPERATOR ob.=== (FUNCTION = ob.mood_eq, LEFTARG = text, RIGHTARG = ob.mood, COMMUTATOR = OPERATOR(ob.===));
CREATE OPERATOR ob.<<>> (FUNCTION = ob.mood_ne, LEFTARG = ob.mood, RIGHTARG = text, NEGATOR = OPERATOR(ob.===));
CREATE OPERATOR ob.~~~ (FUNCTION = ob.like_each_other, LEFTARG = text, RIGHTARG = text, COMMUTATOR = OPERATOR(ob.~~~),
    NEGATOR = OPERATOR(ob.!~~~), HASHES, MERGES);
CREATE OPERATOR ob.!~~~ (FUNCTION = ob.unlike, LEFTARG = text, RIGHTARG = text, COMMUTATOR = OPERATOR(ob.!~~~));
CREATE OPERATOR ob.@%? (FUNCTION = ob.shout, RIGHTARG = text);
CREATE OPERATOR ob.|| (FUNCTION = ob.join_combine, LEFTARG = text[], RIGHTARG = text[]);
COMMENT ON OPERATOR ob.=== (ob.mood, text) IS 'it''s equal';
COMMENT ON OPERATOR ob.@%? (NONE, text) IS 'prefix';
CREATE TABLE ob.matched (
    id int PRIMARY KEY, one text, two text, mood ob.mood, during tstzrange,
    loud text GENERATED ALWAYS AS (OPERATOR(ob.@%?) one) STORED,
    CONSTRAINT alike CHECK (one OPERATOR(ob.~~~) two OR mood OPERATOR(ob.===) 'sad'),
    CONSTRAINT apart EXCLUDE USING gist (during WITH &&, int4range(id, id, '[]') WITH =)
        WHERE (one OPERATOR(ob.!~~~) 'x')
);
CREATE INDEX matched_alike ON ob.matched ((one OPERATOR(ob.~~~) two)) WHERE mood OPERATOR(ob.<<>>) 'sad';

-- Views: on views, named so that the order of names is the wrong one.
CREATE VIEW ob.z_base AS SELECT id, label, n, mood, ob.fold(label) AS key FROM ob.item
    WHERE mood OPERATOR(ob.<<>>) 'sad';
CREATE VIEW ob.m_middle WITH (security_barrier) AS SELECT b.*, ob.total(n) OVER () AS all_n FROM ob.z_base b;
CREATE VIEW ob.a_top (one, "two, three", row) AS SELECT m.id, m.label || 'x', m FROM ob.m_middle m;
CREATE VIEW ob.grouped AS SELECT i.id, i.label, i.n, count(c.*) AS children FROM ob.item i LEFT JOIN ob.child c
    ON c.item = i.id GROUP BY i.id;
CREATE VIEW ob.a_grouped AS SELECT g.*, c.note FROM ob.grouped g JOIN ob.child c ON c.item = g.id
    GROUP BY g.id, g.label, g.n, g.children, c.id;
CREATE RECURSIVE VIEW ob.counting (n, path) AS
    VALUES (1, ARRAY[1]) UNION ALL SELECT n + 1, path || n FROM counting WHERE n < 5;
CREATE VIEW ob.writable WITH (check_option = cascaded, security_invoker = true) AS SELECT * FROM ob.item WHERE n > 0;
CREATE VIEW ob.local_check AS SELECT id, n FROM ob.writable WHERE n < 1000 WITH LOCAL CHECK OPTION;
ALTER VIEW ob.writable ALTER COLUMN label SET DEFAULT 'it''s', ALTER COLUMN n SET DEFAULT length(ob.fold(' ab '));
CREATE VIEW ob.whole AS SELECT i AS item, (i).label AS again, ob.full_label(i) AS name,
    (SELECT x FROM ob.child x LIMIT 1) AS kid FROM ob.item i;
CREATE VIEW ob.literals AS SELECT E'a\\b' AS back, 'it''s; -- $$' AS quote, U&'\00e9' AS uni, '%s %I' AS percent,
    B'101' AS bits, '1 day'::interval AS day, ARRAY[NULL, 'x'] AS list, '{"a": 1}'::jsonb -> 'a' AS json;
CREATE VIEW ob.lateral_view AS SELECT i.id, x.ord, x.tag FROM ob.item i,
    LATERAL unnest(i.tags) WITH ORDINALITY x(tag, ord)
    WHERE NOT EXISTS (SELECT FROM ob.child c WHERE c.item = i.id) ORDER BY x.ord DESC NULLS LAST LIMIT 10 OFFSET 1;
CREATE VIEW ob.windowed AS SELECT id, rank() OVER w,
    lag(n, 2, 0) OVER (w ROWS BETWEEN 1 PRECEDING AND CURRENT ROW EXCLUDE TIES),
    ob.percentile(0.5) WITHIN GROUP (ORDER BY n) FILTER (WHERE n > 1) AS p FROM ob.item GROUP BY id, n
    WINDOW w AS (PARTITION BY n ORDER BY id);
CREATE VIEW ob.sets AS (SELECT id FROM ob.item EXCEPT SELECT item FROM ob.child) UNION ALL SELECT 1::bigint
    INTERSECT SELECT g FROM generate_series(1, 3) g;
CREATE VIEW ob.ctes AS WITH a AS MATERIALIZED (SELECT * FROM ob.z_base),
    b AS NOT MATERIALIZED (SELECT count(*) c FROM a) SELECT a.*, b.c FROM a CROSS JOIN b;
CREATE VIEW ob.samples AS SELECT id FROM ob.item TABLESAMPLE bernoulli (50) REPEATABLE (3);
CREATE VIEW ob.calls AS SELECT t.*, f.b FROM ob.returns_table(3) t CROSS JOIN ob.outs(1) f;
CREATE VIEW ob.no_columns AS SELECT FROM ob.item;
CREATE VIEW ob.renamed AS SELECT id AS first, label FROM ob.item UNION SELECT 1, 'x';
ALTER VIEW ob.renamed RENAME COLUMN first TO "second one";
CREATE VIEW ob.is_replaced AS SELECT 1 AS a;
CREATE OR REPLACE VIEW ob.is_replaced AS SELECT id::int AS a, label AS b FROM ob.grouped;
COMMENT ON VIEW ob.a_top IS 'it''s on top';
COMMENT ON COLUMN ob.a_top."two, three" IS 'both; "of them"';

-- Functions on views' rows, which must come after them, and views on such functions.
CREATE FUNCTION ob.of_view(v ob.m_middle) RETURNS text LANGUAGE sql STABLE AS 'SELECT v.label';
CREATE FUNCTION ob.a_rows(lim int) RETURNS SETOF ob.grouped LANGUAGE sql AS 'SELECT * FROM ob.grouped LIMIT lim';
CREATE FUNCTION ob.a_count() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT sum(children) FROM ob.a_grouped; END;
CREATE VIEW ob.a_of_function AS SELECT r.id, ob.of_view(m) AS label, ob.a_count() AS total FROM ob.a_rows(3) r
    JOIN ob.m_middle m USING (id);
CREATE FUNCTION ob.view_step(bigint, ob.grouped) RETURNS bigint LANGUAGE sql AS 'SELECT $1 + $2.children';
CREATE AGGREGATE ob.view_total(ob.grouped) (SFUNC = ob.view_step, STYPE = bigint, INITCOND = '0');
CREATE FUNCTION ob.views_differ(ob.grouped, ob.grouped) RETURNS bool LANGUAGE sql RETURN $1.id <> $2.id;
CREATE OPERATOR ob.<!> (FUNCTION = ob.views_differ, LEFTARG = ob.grouped, RIGHTARG = ob.grouped);
CREATE TYPE ob.of_grouped AS (g ob.grouped, n int);
CREATE VIEW ob.uses_operator AS SELECT ob.view_total(a) AS total
    FROM ob.grouped a, ob.grouped b WHERE a OPERATOR(ob.<!>) b;

-- Materialized views: filled and not, with indexes, on one another.
CREATE MATERIALIZED VIEW ob.z_sums WITH (fillfactor = 60, autovacuum_enabled = off) AS
    SELECT i.id, i.label, sum(c.amount) AS amount FROM ob.item i JOIN ob.child c ON c.item = i.id GROUP BY i.id;
CREATE UNIQUE INDEX z_sums_id ON ob.z_sums (id) INCLUDE (label);
CREATE INDEX "z sums; fold" ON ob.z_sums USING hash (ob.fold(label)) WHERE amount > 0;
CREATE MATERIALIZED VIEW ob.a_sums AS SELECT count(*) AS n, sum(amount) AS amount FROM ob.z_sums;
CREATE MATERIALIZED VIEW ob.empty_sums AS SELECT * FROM ob.a_sums WITH NO DATA;
CREATE VIEW ob.view_of_sums AS SELECT s.n, e.amount FROM ob.a_sums s JOIN ob.empty_sums e USING (n);
CREATE MATERIALIZED VIEW ob.of_functions AS SELECT label, total FROM ob.a_of_function;
CREATE FUNCTION ob.of_matview(ob.z_sums) RETURNS numeric LANGUAGE sql AS 'SELECT $1.amount';
COMMENT ON MATERIALIZED VIEW ob.z_sums IS 'sums; it''s';
COMMENT ON COLUMN ob.z_sums.amount IS 'in all';
COMMENT ON INDEX ob.z_sums_id IS 'its key';

-- Triggers: when, on what, with which transition tables, in which state.
CREATE TABLE ob.log (id bigserial PRIMARY KEY, what text);
CREATE FUNCTION ob.note() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO ob.log (what) VALUES (TG_NAME || ' ' || TG_OP); RETURN coalesce(NEW, OLD); END $$;
CREATE FUNCTION ob.note_table() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO ob.log (what) SELECT TG_NAME || id FROM fresh; RETURN NULL; END $$;
CREATE FUNCTION ob.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.at := now(); RETURN NEW; END';
CREATE TRIGGER touch BEFORE UPDATE ON ob.item FOR EACH ROW
    WHEN (OLD.n IS DISTINCT FROM NEW.n) EXECUTE FUNCTION ob.touch();
CREATE TRIGGER of_columns AFTER UPDATE OF label, n ON ob.item FOR EACH ROW
    WHEN (ob.fold(OLD.label) OPERATOR(ob.!~~~) NEW.label) EXECUTE FUNCTION ob.note('a', 'it''s', E'b\\n', '');
CREATE TRIGGER all_kinds AFTER INSERT OR DELETE OR UPDATE ON ob.item FOR EACH STATEMENT EXECUTE FUNCTION ob.note();
CREATE TRIGGER truncated BEFORE TRUNCATE ON ob.item FOR EACH STATEMENT EXECUTE FUNCTION ob.note();
CREATE TRIGGER transition AFTER INSERT ON ob.item REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT
    EXECUTE FUNCTION ob.note_table();
CREATE TRIGGER transition_both AFTER UPDATE ON ob.item REFERENCING OLD TABLE AS stale NEW TABLE AS fresh FOR EACH ROW
    EXECUTE FUNCTION ob.note_table();
CREATE CONSTRAINT TRIGGER checked AFTER INSERT ON ob.item FROM ob.child DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (NEW.n > 0) EXECUTE FUNCTION ob.note();
CREATE CONSTRAINT TRIGGER checked_late AFTER DELETE OR UPDATE OF id ON ob.child DEFERRABLE FOR EACH ROW
    EXECUTE FUNCTION ob.note();
CREATE CONSTRAINT TRIGGER checked_now AFTER INSERT ON ob.child FOR EACH ROW EXECUTE FUNCTION ob.note();
CREATE TRIGGER off AFTER INSERT ON ob.child FOR EACH ROW EXECUTE FUNCTION ob.note();
CREATE TRIGGER always AFTER INSERT ON ob.child FOR EACH ROW EXECUTE FUNCTION ob.note();
CREATE TRIGGER replica AFTER INSERT ON ob.child FOR EACH ROW EXECUTE FUNCTION ob.note();
ALTER TABLE ob.child DISABLE TRIGGER off, ENABLE ALWAYS TRIGGER always, ENABLE REPLICA TRIGGER replica;
ALTER TABLE ob.child DISABLE TRIGGER checked_late;
COMMENT ON TRIGGER touch ON ob.item IS 'it''s; touched';
COMMENT ON TRIGGER checked ON ob.item IS 'a constraint';
CREATE TRIGGER instead INSTEAD OF INSERT OR UPDATE OR DELETE ON ob.a_top FOR EACH ROW EXECUTE FUNCTION ob.note('view');
CREATE TRIGGER statement_on_view AFTER UPDATE ON ob.writable FOR EACH STATEMENT EXECUTE FUNCTION ob.note();
COMMENT ON TRIGGER instead ON ob.a_top IS 'of a view';

CREATE TABLE ob.parts (id int, at date, v text) PARTITION BY RANGE (id);
CREATE TABLE ob.parts_1 PARTITION OF ob.parts FOR VALUES FROM (1) TO (10);
CREATE TABLE ob.parts_2 PARTITION OF ob.parts FOR VALUES FROM (10) TO (20) PARTITION BY LIST (v);
CREATE TABLE ob.parts_2_x PARTITION OF ob.parts_2 FOR VALUES IN ('x');
CREATE TABLE ob.parts_2_y PARTITION OF ob.parts_2 FOR VALUES IN ('y');
CREATE TABLE ob.parts_3 (v text, id int, at date);
CREATE TRIGGER row_of_all AFTER INSERT ON ob.parts FOR EACH ROW EXECUTE FUNCTION ob.note();
CREATE TRIGGER another BEFORE UPDATE OF at, v ON ob.parts FOR EACH ROW WHEN (NEW.v <> '') EXECUTE FUNCTION ob.touch();
CREATE TRIGGER is_off AFTER DELETE ON ob.parts FOR EACH ROW EXECUTE FUNCTION ob.note();
CREATE TRIGGER stays_here AFTER INSERT ON ob.parts FOR EACH STATEMENT EXECUTE FUNCTION ob.note();
CREATE CONSTRAINT TRIGGER in_parts AFTER UPDATE ON ob.parts DEFERRABLE FOR EACH ROW EXECUTE FUNCTION ob.note();
CREATE TRIGGER of_its_own AFTER INSERT ON ob.parts_1 FOR EACH ROW EXECUTE FUNCTION ob.note();
ALTER TABLE ob.parts ATTACH PARTITION ob.parts_3 FOR VALUES FROM (20) TO (30);
ALTER TABLE ob.parts_1 DISABLE TRIGGER row_of_all, ENABLE ALWAYS TRIGGER another;
ALTER TABLE ob.parts_2_y DISABLE TRIGGER row_of_all;
ALTER TABLE ob.parts_2 DISABLE TRIGGER another;
ALTER TABLE ob.parts_2_y ENABLE REPLICA TRIGGER another;
ALTER TABLE ONLY ob.parts DISABLE TRIGGER in_parts;
ALTER TABLE ob.parts DISABLE TRIGGER is_off;
ALTER TABLE ob.parts_3 ENABLE TRIGGER is_off;
COMMENT ON TRIGGER row_of_all ON ob.parts IS 'of the parent';

-- Rules.
CREATE TABLE ob.ruled (id int PRIMARY KEY, v text, at date);
CREATE RULE log_insert AS ON INSERT TO ob.ruled DO ALSO INSERT INTO ob.log (what) VALUES ('it''s ' || NEW.v);
CREATE RULE no_delete AS ON DELETE TO ob.ruled WHERE OLD.id < 0 DO INSTEAD NOTHING;
CREATE RULE two_things AS ON UPDATE TO ob.ruled WHERE OLD.v IS DISTINCT FROM NEW.v DO (
    INSERT INTO ob.log (what) VALUES (ob.fold(NEW.v)); DELETE FROM ob.child WHERE id = OLD.id);
CREATE RULE off AS ON DELETE TO ob.ruled DO ALSO NOTIFY gone;
CREATE RULE always AS ON DELETE TO ob.ruled DO ALSO NOTIFY gone;
CREATE RULE replica AS ON DELETE TO ob.ruled DO ALSO NOTIFY gone;
ALTER TABLE ob.ruled DISABLE RULE off, ENABLE ALWAYS RULE always, ENABLE REPLICA RULE replica;
CREATE RULE into_table AS ON INSERT TO ob.grouped DO INSTEAD INSERT INTO ob.item (id, label, code)
    VALUES (NEW.id, NEW.label, 'C-3') RETURNING id, label, n, 0::bigint;
CREATE RULE upsert AS ON UPDATE TO ob.grouped DO INSTEAD UPDATE ob.item SET label = NEW.label WHERE id = OLD.id;
COMMENT ON RULE log_insert ON ob.ruled IS 'it''s a rule';

-- Statistics.
CREATE STATISTICS ob.st_all ON n, label, mood FROM ob.item;
CREATE STATISTICS ob.st_kinds (ndistinct, mcv) ON n, label FROM ob.item;
CREATE STATISTICS ob.st_dependencies (dependencies) ON n, (ob.fold(label)), (n % 7) FROM ob.item;
CREATE STATISTICS ob.st_expression ON (n + length(label)) FROM ob.item;
CREATE STATISTICS ob.st_matview (mcv) ON id, amount FROM ob.z_sums;
CREATE STATISTICS ob."st; part" ON id, v FROM ob.parts;
ALTER STATISTICS ob.st_all SET STATISTICS 333;
ALTER STATISTICS ob.st_expression SET STATISTICS 0;
COMMENT ON STATISTICS ob.st_kinds IS 'kinds; it''s';

-- Row security: every command, roles, permissive and restrictive, enabled, forced, both, neither.
CREATE FUNCTION ob.may_see(text) RETURNS bool LANGUAGE sql STABLE AS 'SELECT $1 = current_user';
CREATE TABLE ob.secured (id int PRIMARY KEY, owner text, v text);
CREATE POLICY every ON ob.secured USING (ob.may_see(owner));
CREATE POLICY reading ON ob.secured AS PERMISSIVE FOR SELECT TO tw_plain, tw_owner USING (true);
CREATE POLICY writing ON ob.secured FOR INSERT TO tw_plain WITH CHECK (owner = CURRENT_USER);
CREATE POLICY changing ON ob.secured AS RESTRICTIVE FOR UPDATE USING (id > 0) WITH CHECK (v <> 'it''s');
CREATE POLICY leaving ON ob.secured AS RESTRICTIVE FOR DELETE TO public
    USING (id IN (SELECT item FROM ob.child) OR EXISTS (SELECT FROM ob.m_middle m WHERE m.id = secured.id));
CREATE POLICY nothing ON ob.secured;
ALTER TABLE ob.secured ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
COMMENT ON POLICY changing ON ob.secured IS 'it''s a policy';
CREATE TABLE ob.enabled_only (id int PRIMARY KEY);
ALTER TABLE ob.enabled_only ENABLE ROW LEVEL SECURITY;
CREATE TABLE ob.forced_only (id int PRIMARY KEY);
ALTER TABLE ob.forced_only FORCE ROW LEVEL SECURITY;
CREATE TABLE ob.policy_only (id int PRIMARY KEY);
CREATE POLICY p ON ob.policy_only USING (id > 0);
CREATE POLICY p ON ob.parts FOR SELECT USING (v = 'x');
ALTER TABLE ob.parts ENABLE ROW LEVEL SECURITY;

-- Odd names, of each kind.
CREATE SCHEMA "Odd. ""ob"", é";
CREATE TYPE "Odd. ""ob"", é"."select" AS ENUM ('x y', '');
CREATE TYPE "Odd. ""ob"", é"."row; type" AS ("a.b" int, "select" text);
CREATE DOMAIN "Odd. ""ob"", é"."my 'domain'" AS text CONSTRAINT "a "" check" CHECK (VALUE <> 'it''s');
CREATE FUNCTION "Odd. ""ob"", é"."fun(c)tion"("arg one" "Odd. ""ob"", é"."select", "table" text DEFAULT '";')
    RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT "table" || "arg one" $$;
CREATE FUNCTION "Odd. ""ob"", é".":x %s $1"(VARIADIC "Ünï" "Odd. ""ob"", é"."row; type"[]) RETURNS int LANGUAGE sql
    AS 'SELECT 1';
CREATE TABLE "Odd. ""ob"", é"."table" (
    "Id" int PRIMARY KEY, "select" "Odd. ""ob"", é"."select" DEFAULT 'x y',
    "a ""b"".c" "Odd. ""ob"", é"."my 'domain'",
    "ü" text DEFAULT "Odd. ""ob"", é"."fun(c)tion"(''), "percent%" "Odd. ""ob"", é"."row; type"
);
CREATE AGGREGATE "Odd. ""ob"", é"."sum up"(int) (SFUNC = int4pl, STYPE = int);
CREATE FUNCTION "Odd. ""ob"", é"."eq; uals"("Odd. ""ob"", é"."select", "Odd. ""ob"", é"."select")
    RETURNS bool LANGUAGE sql AS 'SELECT $1::text = $2::text';
CREATE OPERATOR "Odd. ""ob"", é".<%> (FUNCTION = "Odd. ""ob"", é"."eq; uals", LEFTARG = "Odd. ""ob"", é"."select",
    RIGHTARG = "Odd. ""ob"", é"."select", COMMUTATOR = OPERATOR("Odd. ""ob"", é".<%>));
CREATE VIEW "Odd. ""ob"", é"."a 'view'" AS SELECT t.*,
    "Odd. ""ob"", é"."sum up"("Id") OVER () AS "%" FROM "Odd. ""ob"", é"."table" t;
CREATE MATERIALIZED VIEW "Odd. ""ob"", é"."m.view" AS SELECT "Id", "select" FROM "Odd. ""ob"", é"."a 'view'";
CREATE INDEX "index ""on"" m.view" ON "Odd. ""ob"", é"."m.view" ("Id" DESC);
CREATE FUNCTION "Odd. ""ob"", é"."trigger"() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER "trig ""ger"".é" BEFORE UPDATE OF "a ""b"".c" ON "Odd. ""ob"", é"."table" FOR EACH ROW
    WHEN (NEW."select" OPERATOR("Odd. ""ob"", é".<%>) 'x y')
    EXECUTE FUNCTION "Odd. ""ob"", é"."trigger"('"; --', '%s');
ALTER TABLE "Odd. ""ob"", é"."table" ENABLE REPLICA TRIGGER "trig ""ger"".é";
CREATE RULE "rule; 'x'" AS ON INSERT TO "Odd. ""ob"", é"."a 'view'" DO INSTEAD
    INSERT INTO "Odd. ""ob"", é"."table" ("Id", "ü") VALUES (NEW."Id", NEW."ü");
CREATE STATISTICS "Odd. ""ob"", é"."st.at ""s""" ON "Id", "ü" FROM "Odd. ""ob"", é"."table";
ALTER STATISTICS "Odd. ""ob"", é"."st.at ""s""" SET STATISTICS 5;
CREATE POLICY "po;l 'i' ""cy""" ON "Odd. ""ob"", é"."table" TO tw_plain USING ("a ""b"".c" <> 'it''s');
ALTER TABLE "Odd. ""ob"", é"."table" ENABLE ROW LEVEL SECURITY;
CREATE PROCEDURE "Odd. ""ob"", é"."begin"("in" int) LANGUAGE sql AS $_$ SELECT $1, '$$' $_$;
COMMENT ON FUNCTION "Odd. ""ob"", é"."fun(c)tion"("Odd. ""ob"", é"."select", text) IS '%s; "';
COMMENT ON VIEW "Odd. ""ob"", é"."a 'view'" IS 'é''%';
COMMENT ON COLUMN "Odd. ""ob"", é"."a 'view'"."%" IS '%';
COMMENT ON TRIGGER "trig ""ger"".é" ON "Odd. ""ob"", é"."table" IS '"';
COMMENT ON RULE "rule; 'x'" ON "Odd. ""ob"", é"."a 'view'" IS '''';
COMMENT ON STATISTICS "Odd. ""ob"", é"."st.at ""s""" IS '\';
COMMENT ON POLICY "po;l 'i' ""cy""" ON "Odd. ""ob"", é"."table" IS ' ';
COMMENT ON OPERATOR "Odd. ""ob"", é".<%> ("Odd. ""ob"", é"."select", "Odd. ""ob"", é"."select") IS '<%>';
COMMENT ON AGGREGATE "Odd. ""ob"", é"."sum up"(int) IS 'é';
COMMENT ON DOMAIN "Odd. ""ob"", é"."my 'domain'" IS '"';
COMMENT ON TYPE "Odd. ""ob"", é"."row; type" IS '''';

INSERT INTO ob.item (id, label, n, code) SELECT g, 'Label ' || g, g, 'A-' || g FROM generate_series(1, 20) g;
INSERT INTO ob.child SELECT g, g % 10 + 1, g, 'note ' || g FROM generate_series(1, 30) g;
INSERT INTO ob.by_fold VALUES ('Aha', 1), (' b', 2);
INSERT INTO ob.matched VALUES (1, 'One', ' one', 'sad', '[2001-01-01,2002-01-01)'), (2, 'x', 'y', 'sad', NULL);
INSERT INTO ob.parts VALUES (1, NULL, 'x'), (11, NULL, 'y'), (21, NULL, 'z');
INSERT INTO ob.secured VALUES (1, 'tw_plain', 'v');
INSERT INTO "Odd. ""ob"", é"."table" VALUES (1), (2);
REFRESH MATERIALIZED VIEW ob.z_sums;
REFRESH MATERIALIZED VIEW ob.a_sums;
REFRESH MATERIALIZED VIEW ob.of_functions;
REFRESH MATERIALIZED VIEW "Odd. ""ob"", é"."m.view";
