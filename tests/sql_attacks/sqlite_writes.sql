--- sqlite rejected: ATTACH creates a file
ATTACH 'new.db' AS x
--- sqlite rejected: ATTACH creates a file in a folder
ATTACH '{folder}/new.db' AS x
--- sqlite rejected: ATTACH by URI
ATTACH 'file:x?mode=rwc' AS x
--- sqlite rejected: ATTACH of a database in memory
ATTACH ':memory:' AS x
--- sqlite rejected: DETACH
DETACH main
--- sqlite rejected: VACUUM INTO writes a copy
VACUUM INTO '{folder}/copy.db'
--- sqlite rejected: VACUUM
VACUUM
--- sqlite rejected: a writable schema
PRAGMA writable_schema=1
--- sqlite rejected: the read-only switch is turned off
PRAGMA query_only=0
--- sqlite rejected: a pragma that only reads
PRAGMA database_list
--- sqlite rejected: a pragma as a table, which shows host paths
SELECT * FROM pragma_database_list
--- sqlite rejected: a pragma as a table function
SELECT name FROM pragma_table_info('t')
--- sqlite rejected: code from a file
SELECT load_extension('{folder}/evil.so')
--- sqlite rejected: code from a file, with an entry point
SELECT LOAD_EXTENSION('evil', 'main') FROM t
--- sqlite rejected: DELETE behind a WITH
WITH x AS (SELECT 1) DELETE FROM t
--- sqlite rejected: INSERT behind a WITH
WITH x AS (SELECT 1) INSERT INTO t SELECT *, 'x' FROM x
--- sqlite rejected: UPDATE that returns rows
UPDATE t SET a = 0 RETURNING a
--- sqlite rejected: REPLACE
REPLACE INTO t VALUES (1, 'x')
--- sqlite rejected: CREATE TEMP TABLE
CREATE TEMP TABLE u (a)
--- sqlite rejected: CREATE TEMP TABLE from a query
CREATE TEMP TABLE u AS SELECT * FROM t
--- sqlite rejected: CREATE TEMP VIEW
CREATE TEMP VIEW v AS SELECT 1
--- sqlite rejected: CREATE VIRTUAL TABLE
CREATE VIRTUAL TABLE u USING fts5(a)
--- sqlite rejected: CREATE TRIGGER
CREATE TRIGGER r AFTER INSERT ON t BEGIN DELETE FROM t; END
--- sqlite rejected: DROP
DROP TABLE t
--- sqlite rejected: ALTER
ALTER TABLE t RENAME TO u
--- sqlite rejected: a lock
BEGIN IMMEDIATE
--- sqlite rejected: an exclusive lock
BEGIN EXCLUSIVE
--- sqlite rejected: SAVEPOINT
SAVEPOINT s
--- sqlite rejected: a second statement
SELECT 1; DROP TABLE t
--- sqlite rejected: a comment hides a second statement
SELECT 1 /* ; */ ; -- nothing here
DELETE FROM t
--- sqlite rejected: a comment before the write
/* SELECT 1 */ DELETE FROM t
--- sqlite rejected: EXPLAIN
EXPLAIN SELECT 1
--- sqlite rejected: ANALYZE writes statistics
ANALYZE
--- sqlite sql_error: empty text
--- sqlite sql_error: a lone semicolon
;
--- sqlite sql_error: semicolons and spaces
 ; ;
--- sqlite sql_error: a comment and nothing else
-- SELECT 1
--- sqlite sql_error: a block comment and nothing else
/* SELECT 1 */
--- sqlite sql_error: a function that writes files in the shell only
SELECT writefile('{folder}/x', 'y')
--- sqlite sql_error: a function that reads files in the shell only
SELECT readfile('{secret}')
--- sqlite sql_error: the shell's own table of files
SELECT * FROM fsdir('/')
