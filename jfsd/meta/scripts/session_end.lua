-- Forget a session whose locks and sustained inodes are gone (format.md §7.3, step 3).
--
-- ARGV[9] sid  [10] second: do nothing if the session expires later; '' for one's own session
-- Result {0}; {11} EAGAIN: it has come back to life, or something is left to clean.
--@include op
--@include locks

local sid = ARGV[9]
if ARGV[10] ~= '' and locks.expires_after(P, sid, tonumber(ARGV[10])) then return { 11 } end
if call('EXISTS', P .. 'locked' .. sid, P .. 'session' .. sid) > 0 then return { 11 } end
call('HDEL', P .. 'sessionInfos', sid)
if call('ZREM', P .. 'allSessions', sid) == 0 and P == '' then call('ZREM', 'sessions', sid) end
return { 0 }
