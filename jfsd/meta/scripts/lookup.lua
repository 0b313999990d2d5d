-- Finds a name and reads its node (format.md §9.1); changes nothing.
-- KEYS[1] d<parent>  ARGV[1] prefix  ARGV[2] name
-- Result {entry, attr or ''}, or {} when there is no such name.
local entry = redis.call('HGET', KEYS[1], ARGV[2])
if not entry then return {} end
local hi, lo = struct.unpack('>I4I4', entry, 2)
if hi < 2097152 then
  return {entry, redis.call('GET', ARGV[1] .. 'i' .. string.format('%.0f', hi * 4294967296 + lo)) or ''}
end
local low = hi * 967296 + lo
local carry = math.floor(low / 1000000)
return {entry, redis.call('GET', ARGV[1] .. 'i'
  .. string.format('%.0f%06d', hi * 4294 + carry, low - carry * 1000000)) or ''}
