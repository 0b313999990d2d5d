-- Set or clear a POSIX lock on a range (format.md §14), without waiting.
--
-- ARGV[9] inode  [10] field <sid>_<OWNER16>  [11] type 0 read, 1 write, 2 unlock
-- ARGV[12] first byte  [13] last byte, inclusive, 16 hex digits each  [14] pid
-- Result {0}; {11} EAGAIN: another owner of a living session stands against it.
--@include op
--@include locks

local key, field = P .. 'lockp' .. ARGV[9], ARGV[10]
local wanted = locks.range(tonumber(ARGV[11]), tonumber(ARGV[14]), ARGV[12], ARGV[13])

if wanted.type ~= locks.UNLOCK then
  local held = call('HGETALL', key)
  for i = 1, #held, 2 do
    if held[i] ~= field and locks.conflict(held[i + 1], wanted)
      and not locks.drop_if_dead(P, key, held[i]) then
      return { 11 }
    end
  end
end
local own = call('HGET', key, field) or ''
local merged = locks.merge(own, wanted)
if merged == '' then
  if own ~= '' then locks.remove(P, key, field) end
else
  call('HSET', key, field, merged)
  locks.note(P, key, locks.sid(field))
end
return record({ 0 })
