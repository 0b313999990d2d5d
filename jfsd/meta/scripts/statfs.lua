-- Reads what statfs needs (format.md §9.1): usage, and the quotas on a directory and above it.
-- KEYS[1] usedSpace  ARGV[1] prefix  ARGV[2] directory
-- Result {bytes used, inodes used, then per quota: limits (16 bytes), bytes used, inodes used}
local P = ARGV[1]
local call = redis.call
--@include attr
local result = {call('GET', KEYS[1]) or '0', call('GET', P .. 'totalInodes') or '0'}
local dir = ARGV[2]
if call('EXISTS', P .. 'dirQuotaUsedInodes') == 0 then return result end
for _ = 1, 100000 do
  if #dir > 18 then return result end
  local limits = call('HGET', P .. 'dirQuota', dir)
  if limits then
    result[#result + 1] = limits
    result[#result + 1] = call('HGET', P .. 'dirQuotaUsedSpace', dir) or '0'
    result[#result + 1] = call('HGET', P .. 'dirQuotaUsedInodes', dir) or '0'
  end
  local a = load(dir)
  if dir == '1' or not a then return result end
  dir = decimal(parent(a))
end
return result
