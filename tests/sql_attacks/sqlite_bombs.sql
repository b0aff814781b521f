--- sqlite timeout|memory: an endless recursive table
WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT COUNT(*) FROM r
--- sqlite timeout|memory: an endless recursive table that forgets nothing
WITH RECURSIVE r(n) AS (SELECT 1 UNION SELECT n + 1 FROM r) SELECT COUNT(*) FROM r
--- sqlite timeout|memory: a text that doubles
WITH RECURSIVE r(x) AS (SELECT 'x' UNION ALL SELECT x || x FROM r) SELECT MAX(LENGTH(x)) FROM r
--- sqlite timeout|memory: a three-way cartesian count
SELECT COUNT(*) FROM big AS x, big AS y, big AS z
--- sqlite timeout|memory: a cartesian product in order
SELECT x.a FROM big AS x, big AS y, big AS z ORDER BY x.b || y.b || z.b
--- sqlite timeout|memory: group_concat over a join
SELECT LENGTH(GROUP_CONCAT(x.b || y.b || z.b)) FROM big AS x, big AS y, big AS z
--- sqlite timeout|memory: a gigabyte of noise
SELECT randomblob(1000000000)
--- sqlite timeout|memory: half a gigabyte in hexadecimal
SELECT hex(zeroblob(500000000))
--- sqlite timeout|memory: padding that runs inside one opcode
SELECT printf('%.*c', 900000000, 'x')
--- sqlite timeout|memory: padding below the length limit, again and again
SELECT SUM(LENGTH(printf('%.*c', 3900000, x.a))) FROM big AS x, big AS y
--- sqlite timeout|memory: nested replace
SELECT LENGTH(replace(replace(hex(zeroblob(1000000)), '0', 'xxxxxxxx'), 'x', 'yyyyyyyy'))
--- sqlite timeout|memory: one search minutes long
SELECT instr(zeroblob(900000), CAST(zeroblob(450000) || 'x' AS BLOB)) FROM t, t AS u
--- sqlite timeout|memory: a distinct of wide rows
SELECT COUNT(*) FROM (SELECT DISTINCT x.a, y.a, hex(randomblob(100000)) FROM big AS x, big AS y)
--- sqlite truncated: a hundred million rows
WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 100000000) SELECT n FROM r
--- sqlite truncated: more rows than allowed from a join
SELECT x.a, y.a FROM big AS x, big AS y
--- sqlite truncated: more bytes than allowed in a few rows
SELECT zeroblob(3000000) FROM big
