-- Register a session, or say that it still lives (format.md §7.1, §7.2).
--
-- ARGV[9] sid  [10] second at which it expires  [11] its JSON  [12] 1: replace the JSON (a new
-- process took the session over), 0: only if it is missing  [13] seconds until the results that
-- this mount recorded are forgotten if nobody refreshes again
-- Result {0, 1 if the JSON was missing: another client has cleaned the session, its locks are gone}.
--@include op

local sid = ARGV[9]
local missing = call('HSETNX', P .. 'sessionInfos', sid, ARGV[11])
if ARGV[12] == '1' then call('HSET', P .. 'sessionInfos', sid, ARGV[11]) end
call('ZADD', P .. 'allSessions', ARGV[10], sid)
call('EXPIRE', KEYS[1], ARGV[13])
return { 0, missing }
