-- A ledger: entries partitioned by month, balanced transactions, balances that are materialized.
CREATE SCHEMA ledger;
CREATE SCHEMA ledger_old;

CREATE TYPE ledger.side AS ENUM ('debit', 'credit');
CREATE DOMAIN ledger.currency AS char(3) CHECK (VALUE = upper(VALUE));
CREATE TYPE ledger.money AS (amount numeric(20,4), currency ledger.currency);
CREATE TYPE ledger.leg AS (account text, side ledger.side, amount numeric);

CREATE FUNCTION ledger.money_add(ledger.money, ledger.money) RETURNS ledger.money LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF ($1).currency <> ($2).currency THEN RAISE EXCEPTION '% is not %', ($1).currency, ($2).currency; END IF;
    RETURN ROW((($1).amount + ($2).amount)::numeric(20,4), ($2).currency);
END $$;
CREATE OPERATOR ledger.+ (FUNCTION = ledger.money_add, LEFTARG = ledger.money, RIGHTARG = ledger.money,
    COMMUTATOR = OPERATOR(ledger.+));
CREATE FUNCTION ledger.money_step(ledger.money, ledger.money) RETURNS ledger.money LANGUAGE sql IMMUTABLE AS
    $$ SELECT CASE WHEN $1 IS NULL THEN $2 ELSE $1 OPERATOR(ledger.+) $2 END $$;
CREATE AGGREGATE ledger.sum(ledger.money) (SFUNC = ledger.money_step, STYPE = ledger.money,
    COMBINEFUNC = ledger.money_step, PARALLEL = SAFE);
CREATE FUNCTION ledger.signed(side ledger.side, amount numeric) RETURNS numeric LANGUAGE sql IMMUTABLE
    RETURN CASE side WHEN 'debit'::ledger.side THEN amount ELSE -amount END;

CREATE TABLE ledger.accounts (
    code text PRIMARY KEY CHECK (code ~ '^[0-9]{4}(\.[0-9]{2})?$'),
    name text NOT NULL,
    currency ledger.currency NOT NULL DEFAULT 'EUR',
    closed boolean NOT NULL DEFAULT false,
    "limit" ledger.money
);
CREATE TABLE ledger.transactions (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), booked date NOT NULL, text text);
CREATE TABLE ledger.entries (
    transaction uuid NOT NULL REFERENCES ledger.transactions,
    line int NOT NULL,
    booked date NOT NULL,
    account text NOT NULL REFERENCES ledger.accounts,
    side ledger.side NOT NULL,
    amount numeric(20,4) NOT NULL CHECK (amount > 0),
    signed numeric GENERATED ALWAYS AS (ledger.signed(side, amount)) STORED,
    PRIMARY KEY (transaction, line, booked)
) PARTITION BY RANGE (booked);
CREATE INDEX entries_account ON ledger.entries (account, booked);
CREATE TABLE ledger_old.entries PARTITION OF ledger.entries FOR VALUES FROM (MINVALUE) TO ('2024-01-01')
    PARTITION BY RANGE (booked);
CREATE TABLE ledger_old.autumn PARTITION OF ledger_old.entries FOR VALUES FROM ('2023-09-01') TO ('2023-12-01');
CREATE TABLE ledger_old.december PARTITION OF ledger_old.entries FOR VALUES FROM ('2023-12-01') TO ('2024-01-01');
CREATE TABLE ledger.entries_rest PARTITION OF ledger.entries DEFAULT;
CREATE TABLE ledger.counters (account text PRIMARY KEY, entries bigint NOT NULL, last date);

-- A month's partition, named after it.
CREATE FUNCTION ledger.add_month(month date) RETURNS regclass LANGUAGE plpgsql AS $$
DECLARE
    name text := to_char(month, '"entries_"YYYY_MM');
BEGIN
    EXECUTE format('CREATE TABLE ledger.%I PARTITION OF ledger.entries FOR VALUES FROM (%L) TO (%L)', name,
                   date_trunc('month', month)::date, (date_trunc('month', month) + interval '1 month')::date);
    RETURN format('ledger.%I', name)::regclass;
END $$;
SELECT ledger.add_month(m::date) FROM generate_series(date '2024-01-01', '2024-06-01', '1 month') m;

-- What must hold: at the end of a transaction its entries sum up to nothing; closed accounts take none; no changes.
CREATE FUNCTION ledger.check_balanced() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    rest numeric;
BEGIN
    SELECT sum(signed) INTO rest FROM ledger.entries WHERE transaction = NEW.transaction;
    IF rest <> 0 THEN
        RAISE EXCEPTION 'transaction % is out of balance by %', NEW.transaction, rest USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE FUNCTION ledger.check_open() RETURNS trigger LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF (SELECT closed FROM ledger.accounts WHERE code = NEW.account) THEN
        RAISE EXCEPTION 'account % is closed', NEW.account;
    END IF;
    RETURN NEW;
END $$;
CREATE FUNCTION ledger.count_entries() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO ledger.counters AS c SELECT account, count(*), max(booked) FROM fresh GROUP BY account
    ON CONFLICT (account) DO UPDATE SET entries = c.entries + EXCLUDED.entries, last = greatest(c.last, EXCLUDED.last);
    RETURN NULL;
END $$;
CREATE FUNCTION ledger.immutable() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'entries are not changed: %', TG_ARGV[0]; END $$;
CREATE CONSTRAINT TRIGGER balanced AFTER INSERT ON ledger.entries DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    EXECUTE FUNCTION ledger.check_balanced();
CREATE TRIGGER open BEFORE INSERT ON ledger.entries FOR EACH ROW EXECUTE FUNCTION ledger.check_open();
CREATE TRIGGER count AFTER INSERT ON ledger.entries REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT
    EXECUTE FUNCTION ledger.count_entries();
CREATE TRIGGER immutable BEFORE UPDATE OR DELETE ON ledger.entries FOR EACH ROW
    EXECUTE FUNCTION ledger.immutable('post a reversal');
ALTER TABLE ledger_old.autumn DISABLE TRIGGER balanced;
ALTER TABLE ledger.entries_rest DISABLE TRIGGER open;
COMMENT ON TRIGGER balanced ON ledger.entries IS 'Debit is credit';
CREATE CONSTRAINT TRIGGER has_entries AFTER INSERT ON ledger.transactions DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (NEW.text IS NOT NULL) EXECUTE FUNCTION ledger.immutable();
ALTER TABLE ledger.transactions DISABLE TRIGGER has_entries;

CREATE FUNCTION ledger.post(id uuid, booked date, VARIADIC legs ledger.leg[]) RETURNS uuid LANGUAGE sql AS $$
    INSERT INTO ledger.transactions VALUES (id, booked, 'posted');
    INSERT INTO ledger.entries SELECT id, n, booked, l.account, l.side, l.amount
        FROM unnest(legs) WITH ORDINALITY l(account, side, amount, n);
    SELECT id;
$$;
CREATE FUNCTION ledger.transfer(booked date, credited text, debited text, amount numeric) RETURNS uuid
    LANGUAGE sql AS $$
    SELECT ledger.post(gen_random_uuid(), booked, ROW(debited, 'debit', amount)::ledger.leg,
                       ROW(credited, 'credit', amount)::ledger.leg)
$$;

CREATE VIEW ledger.journal AS SELECT t.id, t.booked, t.text, e.line, e.account, a.name, e.signed,
    sum(e.signed) OVER (PARTITION BY e.account ORDER BY e.booked, t.id, e.line) AS running
    FROM ledger.transactions t JOIN ledger.entries e ON e.transaction = t.id
    JOIN ledger.accounts a ON a.code = e.account;
CREATE MATERIALIZED VIEW ledger.balances AS
    SELECT a.code, a.name, count(e.*) AS entries, coalesce(sum(e.signed), 0) AS balance,
        ledger.sum(ROW(e.signed, a.currency)::ledger.money) AS total
    FROM ledger.accounts a LEFT JOIN ledger.entries e ON e.account = a.code GROUP BY a.code;
CREATE UNIQUE INDEX balances_code ON ledger.balances (code);
CREATE MATERIALIZED VIEW ledger.balances_of_classes AS SELECT left(code, 1) AS class, sum(balance) AS balance
    FROM ledger.balances GROUP BY 1;
CREATE MATERIALIZED VIEW ledger.monthly AS SELECT account, date_trunc('month', booked)::date AS month,
    sum(signed) AS sum
    FROM ledger.entries GROUP BY 1, 2 WITH NO DATA;
CREATE VIEW ledger.overdrawn AS SELECT b.* FROM ledger.balances b JOIN ledger.accounts a USING (code)
    WHERE -b.balance > (a."limit").amount;
CREATE FUNCTION ledger.balance_of(account ledger.accounts) RETURNS numeric LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT b.balance FROM ledger.balances b WHERE b.code = (account).code;
    END;
CREATE VIEW ledger.account_list AS SELECT a.code, ledger.balance_of(a) AS balance FROM ledger.accounts a;
CREATE PROCEDURE ledger.close_month() LANGUAGE plpgsql AS $$
BEGIN
    REFRESH MATERIALIZED VIEW ledger.balances;
    REFRESH MATERIALIZED VIEW ledger.balances_of_classes;
    REFRESH MATERIALIZED VIEW ledger.monthly;
END $$;

INSERT INTO ledger.accounts (code, name, "limit") VALUES ('1000', 'Cash', ROW(500, 'EUR')), ('1200', 'Bank', NULL),
    ('2000.01', 'Loan', NULL), ('4000', 'Sales', ROW(100, 'EUR')), ('6000', 'Rent', NULL);
SELECT ledger.transfer(date '2023-11-01' + g, (ARRAY['4000', '1000', '2000.01'])[g % 3 + 1], '1200', g + 0.25)
    FROM generate_series(1, 300) g;
UPDATE ledger.accounts SET closed = true WHERE code = '2000.01';
REFRESH MATERIALIZED VIEW ledger.balances;
REFRESH MATERIALIZED VIEW ledger.balances_of_classes;
