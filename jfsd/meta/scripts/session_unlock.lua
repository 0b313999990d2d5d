-- Remove locks of a session that ends or is stale (format.md §7.3, step 1).
--
-- ARGV[9] sid  [10] second: do nothing if the session expires later; '' for one's own session
-- ARGV[11] how many lock keys at most
-- Result {0, 1 if some are left}; {11} EAGAIN: the session has come back to life.
--@include op
--@include locks

local sid, noted = ARGV[9], P .. 'locked' .. ARGV[9]
if ARGV[10] ~= '' and locks.expires_after(P, sid, tonumber(ARGV[10])) then return { 11 } end
for _, key in ipairs(call('SRANDMEMBER', noted, ARGV[11])) do
  for _, field in ipairs(call('HKEYS', key)) do
    if locks.sid(field) == sid then call('HDEL', key, field) end
  end
  call('SREM', noted, key)
end
return { 0, call('EXISTS', noted) }
