-- Head of every mutation: who asks, and was it done before (handover.md §4). Include it first.
--
-- KEYS[1]  hash of the mount's recorded results; field `g` is the generation that may write
-- ARGV[1] prefix  [2] generation  [3] identity ('0' none)  [4] answered identities, or ''
-- ARGV[5] now: seconds(8) nanoseconds(4)  [6] switches: S dir stats, U user/group quotas, A ACLs
-- ARGV[7] capacity in bytes, '0' none  [8] inode limit, '0' none  [9…] arguments of the operation
-- Result {0, …} done, {errno} nothing was changed, {-1} fenced: a newer server owns the mount.
-- A recorded identity is answered with its first result; nothing is done again.

local P, NOW, SWITCHES = ARGV[1], ARGV[5], ARGV[6]
local call = redis.call
do
  local known = call('HMGET', KEYS[1], 'g', ARGV[3])
  if known[1] and tonumber(known[1]) > tonumber(ARGV[2]) then return {-1} end
  if known[2] then return cmsgpack.unpack(known[2]) end
  if ARGV[4] ~= '' then
    local fields = {}
    for field in string.gmatch(ARGV[4], '%S+') do fields[#fields + 1] = field end
    call('HDEL', KEYS[1], unpack(fields))
  end
end

-- Keeps the full result for a repeat, and returns it. Last write of a script.
-- `news` is true now and not at a repeat: it is added to what is returned and not kept.
local function record(result, news, more)
  if ARGV[3] ~= '0' then call('HSET', KEYS[1], ARGV[3], cmsgpack.pack(result)) end
  if news then result[#result + 1] = news end
  if more then result[#result + 1] = more end
  return result
end
