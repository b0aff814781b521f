--- duckdb rejected: read_csv of a host file
SELECT * FROM read_csv('{secret}')
--- duckdb rejected: read_text of a host file
SELECT * FROM read_text('{secret}')
--- duckdb rejected: glob of the host's folders
SELECT * FROM glob('/*')
--- duckdb rejected: a file as a table
SELECT * FROM '{secret}'
--- duckdb rejected: a file as a table, deep inside
SELECT a FROM t WHERE a IN (SELECT COUNT(*) FROM "{secret}")
--- duckdb rejected: read_blob in a subquery
SELECT (SELECT COUNT(*) FROM read_blob('{secret}'))
--- duckdb rejected: sniff_csv
SELECT * FROM sniff_csv('{secret}')
--- duckdb rejected: COPY TO writes a file
COPY t TO '{folder}/copy.csv'
--- duckdb rejected: COPY of a query
COPY (SELECT 1) TO '{folder}/copy.parquet'
--- duckdb rejected: EXPORT DATABASE
EXPORT DATABASE '{folder}/export'
--- duckdb rejected: IMPORT DATABASE
IMPORT DATABASE '{folder}/export'
--- duckdb rejected: ATTACH
ATTACH '{folder}/new.duckdb' AS x
--- duckdb rejected: INSTALL
INSTALL httpfs
--- duckdb rejected: LOAD
LOAD httpfs
--- duckdb rejected: LOAD of a file
LOAD '{folder}/evil.duckdb_extension'
--- duckdb rejected: more memory
SET memory_limit = '100GB'
--- duckdb rejected: the door opened again
SET enable_external_access = true
--- duckdb rejected: a setting put back
RESET memory_limit
--- duckdb rejected: a variable
SET VARIABLE x = 1
--- duckdb rejected: a pragma
PRAGMA database_list
--- duckdb rejected: a pragma as a function
CALL pragma_version()
--- duckdb rejected: a scan of a Python variable
SELECT * FROM limits
--- duckdb rejected: a scan of a Python module
SELECT * FROM sys
--- duckdb rejected: a query in a text
FROM query('SELECT 1')
--- duckdb rejected: a query in a text, nested
SELECT * FROM (SELECT * FROM query('SELECT * FROM read_csv(''{secret}'')'))
--- duckdb rejected: a serialised query
SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))
--- duckdb rejected: the settings
SELECT * FROM duckdb_settings()
--- duckdb rejected: the settings as a view
SELECT * FROM duckdb_tables
--- duckdb rejected: one setting
SELECT current_setting('memory_limit')
--- duckdb rejected: the environment
SELECT getenv('HOME')
--- duckdb rejected: a temporary table
CREATE TEMP TABLE residue AS SELECT 1
--- duckdb sql_error: no temporary table is left
SELECT * FROM residue
--- duckdb rejected: a write
DELETE FROM t
--- duckdb rejected: a write inside a WITH
WITH x AS (INSERT INTO t VALUES (1, 'x') RETURNING a) SELECT * FROM x
--- duckdb rejected: a transaction
BEGIN
--- duckdb rejected: CHECKPOINT
CHECKPOINT
--- duckdb rejected: a prepared statement
PREPARE q AS SELECT 1
--- duckdb rejected: two statements
SELECT 1; SELECT 2
--- duckdb rejected: a comment hides a second statement
SELECT 1 /* ; */ ; -- nothing
DROP TABLE t
--- duckdb rejected: EXPLAIN ANALYZE
EXPLAIN ANALYZE SELECT 1
--- duckdb rejected: DESCRIBE
DESCRIBE t
--- duckdb rejected: another catalog
SELECT * FROM system.information_schema.tables
--- duckdb sql_error: empty text
--- duckdb sql_error: a lone semicolon
;
--- duckdb sql_error: a comment and nothing else
-- SELECT 1
--- duckdb sql_error: a placeholder without a value
SELECT ?
--- duckdb ok: a comment behind the semicolon
SELECT 1; -- the end
--- duckdb rejected|sql_error: a file on the network
SELECT * FROM 'http://{server}/x.parquet'
--- duckdb rejected: a file on the network by a function
SELECT * FROM read_csv('http://{server}/x.csv')
--- duckdb rejected|sql_error: a file in a bucket
SELECT * FROM 's3://bucket/x.csv'
--- duckdb sql_error: a NUL in the SQL
<<escape>>SELECT 1 \x00
--- duckdb sql_error: half a surrogate pair in the SQL
<<escape>>SELECT '\ud800'
--- duckdb ok: sixty nested parentheses
SELECT <<60 x (>>1<<60 x )>>
--- duckdb sql_error|memory: five thousand nested parentheses
SELECT <<5000 x (>>1<<5000 x )>>
--- duckdb timeout|memory: a text of three gigabytes
SELECT LENGTH(repeat('x', 3000000000))
--- duckdb timeout|memory: a long product
SELECT COUNT(*) FROM range(10000000) AS x, range(10000000) AS y WHERE x.range % 7 = y.range % 11
--- duckdb timeout|memory: an endless recursive table
WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT COUNT(*) FROM r
--- duckdb timeout|memory: a distinct of wide rows
SELECT COUNT(*) FROM (SELECT DISTINCT x.a, y.a, z.a, w.a, repeat(x.b, 50) FROM t AS x, t AS y, t AS z, t AS w)
--- duckdb timeout|memory: a sort of wide rows
SELECT repeat(x.b, 50) AS c FROM t AS x, t AS y, t AS z, t AS w ORDER BY c || y.b || z.b || w.b LIMIT 1 OFFSET 9000000
--- duckdb truncated: a hundred million rows
SELECT * FROM range(100000000)
--- duckdb ok unstable: a random number
SELECT random()
--- duckdb ok unstable: an identifier
SELECT uuid()
--- duckdb ok unstable: today
SELECT current_date
--- duckdb ok unstable: now, deep inside
SELECT a FROM t WHERE now() > TIMESTAMP '2020-01-01'
--- duckdb ok: a query that begins with FROM
FROM t LIMIT 3
--- duckdb ok: dates, lists, decimals
SELECT DATE '2020-01-01', [1, 2], 1.5::DECIMAL(4, 2), TRUE
--- duckdb ok: unpacked lists
SELECT UNNEST([1, 2, 3])
--- duckdb infra: a database that is not there
{missing}
