-- A content store of several tenants: many types and domains, views over views, row security, jsonb, arrays.
CREATE SCHEMA content;
CREATE SCHEMA content_api;

CREATE TYPE content.state AS ENUM ('draft', 'review', 'published', 'archived');
CREATE TYPE content.kind AS ENUM ('article', 'page', 'asset');
CREATE DOMAIN content.slug AS text CONSTRAINT looks CHECK (VALUE ~ '^[a-z0-9]+(-[a-z0-9]+)*$')
    CONSTRAINT short CHECK (length(VALUE) < 80);
CREATE DOMAIN content.slugs AS content.slug[] DEFAULT '{}' NOT NULL;
CREATE DOMAIN content.locale AS varchar(5) DEFAULT 'en' CHECK (VALUE ~ '^[a-z]{2}(_[A-Z]{2})?$');
CREATE TYPE content.window AS RANGE (subtype = timestamptz);
CREATE TYPE content.text_in AS (locale content.locale, text text);
CREATE TYPE content.image AS (url text, width int, height int, alt content.text_in[]);
CREATE TYPE content.gallery AS (title content.text_in, images content.image[]);
CREATE FUNCTION content.is_block(block jsonb) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN jsonb_typeof(block) = 'object' AND block ? 'type'
        AND (block ->> 'type' <> 'list' OR content.are_blocks(block -> 'items'));
END $$;
CREATE FUNCTION content.are_blocks(blocks jsonb) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN jsonb_typeof(blocks) = 'array'
        AND NOT EXISTS (SELECT FROM jsonb_array_elements(blocks) b WHERE NOT content.is_block(b));
END $$;
CREATE DOMAIN content.body AS jsonb DEFAULT '[]' CONSTRAINT blocks CHECK (content.are_blocks(VALUE));
CREATE FUNCTION content.plain_text(body content.body) RETURNS text LANGUAGE sql IMMUTABLE AS
    $$ SELECT coalesce(string_agg(b ->> 'text', ' '), '') FROM jsonb_array_elements(body) b $$;
CREATE FUNCTION content.in_locale(texts content.text_in[], wanted content.locale DEFAULT 'en') RETURNS text
    LANGUAGE sql IMMUTABLE AS
    $$ SELECT t.text FROM unnest(texts) t ORDER BY t.locale = wanted DESC, t.locale LIMIT 1 $$;
CREATE FUNCTION content.tenant() RETURNS int LANGUAGE sql STABLE PARALLEL SAFE AS
    $$ SELECT nullif(current_setting('content.tenant', true), '')::int $$;

CREATE TABLE content.tenants (id int PRIMARY KEY, name text NOT NULL, locales content.locale[] NOT NULL DEFAULT '{en}');
CREATE TABLE content.users (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant int NOT NULL REFERENCES content.tenants ON DELETE CASCADE,
    login name NOT NULL,
    roles text[] NOT NULL DEFAULT '{reader}' CHECK (roles <@ ARRAY['reader', 'editor', 'admin']),
    settings jsonb NOT NULL DEFAULT '{"mail": true}',
    UNIQUE (tenant, login)
);
CREATE TABLE content.items (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant int NOT NULL DEFAULT content.tenant() REFERENCES content.tenants ON DELETE CASCADE,
    kind content.kind NOT NULL DEFAULT 'article',
    slug content.slug NOT NULL,
    titles content.text_in[] NOT NULL DEFAULT '{}',
    title text GENERATED ALWAYS AS (content.in_locale(titles)) STORED,
    body content.body NOT NULL,
    state content.state NOT NULL DEFAULT 'draft',
    shown content.window,
    tags content.slugs,
    gallery content.gallery,
    author uuid REFERENCES content.users ON DELETE SET NULL,
    version int NOT NULL DEFAULT 1,
    UNIQUE (tenant, slug),
    CONSTRAINT one_at_a_time EXCLUDE USING gist (int4range(tenant, tenant, '[]') WITH =, shown WITH &&)
        WHERE (kind = 'page'),
    CONSTRAINT shown_when_published CHECK (state <> 'published' OR shown IS NOT NULL)
);
CREATE INDEX items_words ON content.items USING gin (to_tsvector('pg_catalog.simple', content.plain_text(body)));
CREATE INDEX items_tags ON content.items USING gin ((tags::text[]));
CREATE INDEX items_body ON content.items USING gin ((body::jsonb) jsonb_path_ops);
CREATE INDEX items_shown ON content.items USING gist (shown) WHERE state = 'published';
CREATE TABLE content.versions (
    item uuid REFERENCES content.items ON DELETE CASCADE, version int, old content.items, PRIMARY KEY (item, version)
);

CREATE FUNCTION content.keep_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO content.versions VALUES (OLD.id, OLD.version, OLD);
    NEW.version := OLD.version + 1;
    RETURN NEW;
END $$;
CREATE TRIGGER keep_version BEFORE UPDATE OF body, titles, state ON content.items FOR EACH ROW
    WHEN (OLD.body IS DISTINCT FROM NEW.body OR OLD.titles <> NEW.titles OR OLD.state <> NEW.state)
    EXECUTE FUNCTION content.keep_version();
CREATE FUNCTION content.tell() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_notify('content', TG_OP || ' ' || coalesce(NEW.id, OLD.id)); RETURN NULL; END $$;
CREATE TRIGGER tell AFTER INSERT OR DELETE ON content.items FOR EACH ROW EXECUTE FUNCTION content.tell();

-- Views on views, and what the outside sees: functions on rows, a view that is written through.
CREATE VIEW content.published AS SELECT * FROM content.items WHERE state = 'published';
CREATE VIEW content.current AS SELECT p.*, upper(p.shown) AS until FROM content.published p
    WHERE p.shown @> timestamptz '2024-05-05 00:00:00+00';
CREATE VIEW content.authors AS SELECT u.id, u.tenant, u.login, count(i.*) AS items,
    array_agg(DISTINCT t ORDER BY t) FILTER (WHERE t IS NOT NULL) AS tags
    FROM content.users u LEFT JOIN content.items i ON i.author = u.id LEFT JOIN LATERAL unnest(i.tags::text[]) t ON true
    GROUP BY u.id;
CREATE VIEW content_api.items WITH (security_barrier, security_invoker) AS
    SELECT c.id, c.slug, c.title, content.plain_text(c.body) AS text, a.login AS author, c.tags
    FROM content.current c LEFT JOIN content.authors a ON a.id = c.author WHERE c.tenant = content.tenant();
CREATE VIEW content_api.drafts AS SELECT id, tenant, slug, titles, body, author FROM content.items WHERE state = 'draft'
    WITH CASCADED CHECK OPTION;
ALTER VIEW content_api.drafts ALTER COLUMN slug SET DEFAULT 'untitled',
    ALTER COLUMN body SET DEFAULT '[{"type": "p", "text": "it''s new"}]';
CREATE FUNCTION content_api.excerpt(item content_api.items, length int DEFAULT 20) RETURNS text LANGUAGE sql STABLE AS
    $$ SELECT left(item.text, excerpt.length) || CASE WHEN length(item.text) > excerpt.length THEN '…' ELSE '' END $$;
CREATE VIEW content_api.teasers AS SELECT i.slug, i.title, content_api.excerpt(i) AS excerpt FROM content_api.items i;
CREATE FUNCTION content_api.item(wanted content.slug) RETURNS jsonb LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO content_api, content, pg_temp AS
    $$ SELECT to_jsonb(i) || jsonb_build_object('excerpt', content_api.excerpt(i)) FROM content_api.items i
       WHERE slug = wanted $$;
CREATE MATERIALIZED VIEW content.tag_counts AS SELECT i.tenant, t AS tag, count(*) AS n
    FROM content.items i CROSS JOIN unnest(i.tags::text[]) t GROUP BY 1, 2;
CREATE UNIQUE INDEX tag_counts_key ON content.tag_counts (tenant, tag);
CREATE RULE archive AS ON DELETE TO content.published DO INSTEAD
    UPDATE content.items SET state = 'archived' WHERE id = OLD.id;

-- Tenants do not see each other.
ALTER TABLE content.users ENABLE ROW LEVEL SECURITY;
ALTER TABLE content.items ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE content.versions ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON content.items AS RESTRICTIVE USING (tenant = content.tenant());
CREATE POLICY own_tenant ON content.users USING (tenant = content.tenant()) WITH CHECK (tenant = content.tenant());
CREATE POLICY reading ON content.items FOR SELECT TO tw_plain
    USING (state = 'published' OR author = (SELECT u.id FROM content.users u WHERE u.login = CURRENT_USER));
CREATE POLICY editing ON content.items FOR UPDATE TO tw_plain, tw_owner USING (state IN ('draft', 'review'))
    WITH CHECK (state <> 'archived');
CREATE POLICY writing ON content.items FOR INSERT WITH CHECK (state = 'draft');
CREATE POLICY leaving ON content.items FOR DELETE USING (state = 'draft');
CREATE POLICY of_item ON content.versions FOR SELECT USING (EXISTS (SELECT FROM content.items i WHERE i.id = item));
COMMENT ON POLICY own_tenant ON content.items IS 'The setting content.tenant says whose';

INSERT INTO content.tenants VALUES (1, 'One', '{en,de_DE}'), (2, 'Two', '{fr}');
INSERT INTO content.users (tenant, login, roles) SELECT g % 2 + 1, 'user' || g, ARRAY['reader', 'editor']
    FROM generate_series(1, 10) g;
INSERT INTO content.items (tenant, slug, titles, body, state, shown, tags, author, gallery)
    SELECT u.tenant, 'item-' || g,
        ARRAY[ROW('en', 'Item ' || g), ROW('de', 'Stück, "' || g || '"')]::content.text_in[],
        jsonb_build_array(jsonb_build_object('type', 'p', 'text', repeat('word ' || g || ' ', g))),
        (ARRAY['draft', 'review', 'published']::content.state[])[g % 3 + 1], '[2024-01-01,2025-01-01)',
        ARRAY['tag-' || g % 5, 'all'], u.id,
        ROW(ROW('en', 'it''s'), ARRAY[ROW('/a b', g, NULL, NULL), NULL]::content.image[])::content.gallery
    FROM generate_series(1, 40) g JOIN content.users u ON u.login = 'user' || g % 10 + 1;
UPDATE content.items SET state = 'review' WHERE state = 'draft' AND slug LIKE '%1';
REFRESH MATERIALIZED VIEW content.tag_counts;
