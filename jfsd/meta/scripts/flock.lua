-- Take, convert or drop a BSD lock (format.md §14), without waiting.
--
-- ARGV[9] inode  [10] field <sid>_<OWNER16>  [11] R, W or U (unlock)
-- Result {0}; {11} EAGAIN: another owner of a living session stands against it.
--@include op
--@include locks

local key, field, wanted = P .. 'lockf' .. ARGV[9], ARGV[10], ARGV[11]

if wanted == 'U' then
  locks.remove(P, key, field)
  return record({ 0 })
end
local held = call('HGETALL', key)
for i = 1, #held, 2 do
  if held[i] ~= field and (wanted == 'W' or held[i + 1] == 'W')
    and not locks.drop_if_dead(P, key, held[i]) then
    return { 11 }
  end
end
call('HSET', key, field, wanted)
locks.note(P, key, locks.sid(field))
return record({ 0 })
