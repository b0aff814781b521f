--- sqlite ok: a text that is no UTF-8
SELECT broken FROM odd
--- sqlite ok: a NUL inside a text
SELECT nul FROM odd
--- sqlite ok: infinity and bytes
SELECT 9e999, -9e999, x'00ff', raw FROM odd
--- sqlite sql_error: a placeholder without a value
SELECT ?
--- sqlite ok: a comment behind the semicolon
SELECT 1; -- the end
--- sqlite sql_error: a NUL in the SQL
<<escape>>SELECT 1 \x00; DELETE FROM t
--- sqlite sql_error: half a surrogate pair in the SQL
<<escape>>SELECT '\ud800'
--- sqlite ok: sixty nested parentheses
SELECT <<60 x (>>1<<60 x )>>
--- sqlite sql_error: five thousand nested parentheses
SELECT <<5000 x (>>1<<5000 x )>>
--- sqlite rejected: nested parentheses in a write
DELETE FROM t WHERE a = <<60 x (>>1<<60 x )>>
--- sqlite sql_error: a union of six hundred queries
SELECT 0<<600 x  UNION SELECT 1>>
--- sqlite sql_error: a text longer than allowed
SELECT '<<250000 x x>>'
--- sqlite ok unstable: a random number
SELECT random()
--- sqlite ok unstable: random bytes, deep inside
SELECT a FROM t WHERE a IN (SELECT LENGTH(randomblob(3)))
--- sqlite ok unstable: a random order
SELECT a FROM t ORDER BY RANDOM()
--- sqlite ok unstable: today
SELECT date('now')
--- sqlite ok unstable: the time, without arguments
SELECT datetime( )
--- sqlite ok unstable: this year
SELECT a FROM t WHERE b < strftime('%Y', 'NOW')
--- sqlite ok unstable: a keyword that reads the clock
SELECT CURRENT_TIMESTAMP
--- sqlite ok: a date that is given
SELECT date('2020-01-01'), strftime('%Y', b) FROM t
--- sqlite ok: the word now, and no clock
SELECT a FROM t WHERE b = 'now'
--- sqlite ok: JSON as a table
SELECT value FROM json_each('[1, 2, 3]')
--- sqlite ok: JSON as a table, lateral
SELECT j.key, j.value FROM t, json_tree('{{"a": [1, 2]}}') AS j
--- sqlite ok: a table of 115 columns
SELECT * FROM wide
--- sqlite ok: window functions
SELECT a, RANK() OVER (ORDER BY a) FROM t
--- sqlite infra: a database that is not there
{missing}
