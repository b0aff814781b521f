--- postgres rejected: pg_read_file
SELECT pg_read_file('/etc/passwd')
--- postgres rejected: pg_read_file behind quotes
SELECT "pg_read_file"('/etc/passwd')
--- postgres rejected: pg_read_file of a schema
SELECT pg_catalog.pg_read_file('/etc/passwd')
--- postgres rejected: pg_read_file behind escapes
SELECT U&"pg\005fread_file"('/etc/passwd')
--- postgres rejected: pg_read_binary_file
SELECT * FROM pg_read_binary_file('/etc/passwd')
--- postgres rejected: lo_import
SELECT lo_import('/etc/passwd')
--- postgres rejected: lo_create
SELECT lo_create(0)
--- postgres rejected: lo_from_bytea
SELECT lo_from_bytea(0, 'x')
--- postgres rejected: pg_ls_dir
SELECT pg_ls_dir('/')
--- postgres rejected: pg_stat_file
SELECT pg_stat_file('/etc/passwd')
--- postgres rejected: COPY FROM PROGRAM
COPY t FROM PROGRAM 'id'
--- postgres rejected: COPY TO PROGRAM
COPY (SELECT 1) TO PROGRAM 'cat > /tmp/x'
--- postgres rejected: COPY TO STDOUT
COPY t TO STDOUT
--- postgres rejected: a transaction that may write, then a write
BEGIN READ WRITE; DELETE FROM t
--- postgres rejected: the end of the transaction, then a write
COMMIT; DELETE FROM t
--- postgres rejected: a session that may write
SET default_transaction_read_only = off
--- postgres rejected: no limit on time
SELECT set_config('statement_timeout', '0', false)
--- postgres rejected: no limit on time, then much of it
SELECT set_config('statement_timeout', '0', false), pg_sleep(10)
--- postgres rejected: a block of code that sleeps
DO $$ BEGIN PERFORM pg_sleep(10); END $$
--- postgres rejected: sleep
SELECT pg_sleep(10)
--- postgres rejected: a lock
SELECT pg_advisory_lock(1)
--- postgres rejected: an end to other sessions
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
--- postgres rejected: a new snapshot file
SELECT pg_export_snapshot()
--- postgres rejected: a message
NOTIFY x
--- postgres rejected: a message by a function
SELECT pg_notify('x', 'y')
--- postgres rejected: LISTEN
LISTEN x
--- postgres rejected: SELECT INTO
SELECT * INTO u FROM t
--- postgres rejected: CREATE TABLE AS
CREATE TABLE u AS SELECT 1
--- postgres rejected: CREATE TEMP TABLE
CREATE TEMP TABLE u (a integer)
--- postgres rejected: FOR UPDATE
SELECT a FROM t FOR UPDATE
--- postgres rejected: FOR SHARE in a subquery
SELECT * FROM (SELECT a FROM t FOR SHARE) AS x
--- postgres rejected: a write inside a WITH
WITH x AS (DELETE FROM t RETURNING a) SELECT * FROM x
--- postgres rejected: EXPLAIN ANALYZE runs what it explains
EXPLAIN ANALYZE DELETE FROM t
--- postgres rejected: a prepared statement
PREPARE q AS DELETE FROM t
--- postgres rejected: a function of one's own
CREATE FUNCTION f() RETURNS integer LANGUAGE sql AS 'SELECT 1'
--- postgres rejected: the next value of a sequence
SELECT nextval('numbers')
--- postgres rejected: a query in a text
SELECT query_to_xml('DELETE FROM t RETURNING a', true, true, '')
--- postgres rejected: a query in a text, in XML for ever
SELECT table_to_xml('t', true, true, '')
--- postgres rejected: two statements
SELECT 1; SELECT 2
--- postgres rejected: a comment hides a second statement
SELECT 1 /* ; */ ; -- nothing
DROP TABLE t
--- postgres rejected: a write to a table of the catalog
UPDATE pg_authid SET rolsuper = true
--- postgres rejected: the passwords
SELECT rolpassword FROM pg_authid
--- postgres rejected: another role
SET ROLE owner
--- postgres sql_error: empty text
--- postgres sql_error: a lone semicolon
;
--- postgres sql_error: a comment and nothing else
-- SELECT 1
--- postgres sql_error: no such table
SELECT * FROM nowhere
--- postgres sql_error: a placeholder without a value
SELECT $1
--- postgres ok: a comment behind the semicolon
SELECT 1; -- the end
--- postgres sql_error: a NUL in the SQL
<<escape>>SELECT 1 \x00
--- postgres sql_error: half a surrogate pair in the SQL
<<escape>>SELECT '\ud800'
--- postgres ok: sixty nested parentheses
SELECT <<60 x (>>1<<60 x )>>
--- postgres ok|sql_error: five thousand nested parentheses
SELECT <<5000 x (>>1<<5000 x )>>
--- postgres timeout|memory: a sort bomb
SELECT x.b FROM t AS x, t AS y, t AS z, t AS w, t AS v ORDER BY x.b || y.b || z.b || w.b
--- postgres timeout|memory: an endless recursive table
WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT COUNT(*) FROM r
--- postgres timeout|memory: a gigabyte of text
SELECT LENGTH(repeat('x', 1100000000))
--- postgres timeout|memory: a slow pattern
SELECT COUNT(*) FROM t AS w, t AS x, t AS y, t AS z WHERE w.b || x.b || y.b || z.b ~ '(n+)+(a+)+x'
--- postgres truncated: a hundred million rows
SELECT x.a FROM t AS x, t AS y, t AS z, t AS w
--- postgres timeout: a hundred million rows that the server makes first
SELECT * FROM generate_series(1, 100000000)
--- postgres truncated: more bytes than allowed
SELECT repeat('x', 1000000) FROM t
--- postgres ok unstable: a random number
SELECT random()
--- postgres ok unstable: now
SELECT a FROM t WHERE now() > '2020-01-01'
--- postgres ok unstable: today
SELECT CURRENT_DATE
--- postgres ok: dates, arrays, decimals, percent signs
SELECT DATE '2020-01-01', ARRAY[1, 2], 1.5::numeric, TRUE, 'a%s' LIKE 'a%'
--- postgres ok: window functions
SELECT a, RANK() OVER (ORDER BY a) FROM t
--- postgres ok: the type of a value
SELECT pg_typeof(a) FROM t
--- postgres infra: a database that is not there
{missing}
