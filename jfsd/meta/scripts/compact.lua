-- Puts one record in the place of many in a chunk's list (format.md §11.4, step 5). Times and
-- length of the file stay, so readers keep what they have cached.
--
-- KEYS[1] and ARGV[1…8]: see lib/op.lua
-- ARGV  9 inode  10 chunk index  11 records that the list began with (n × 24 bytes)
--      12 how many of them stay  13 new record (24 bytes)  14 '1' old slices wait in delSlices
-- Result {0, '<id>_<size>' of every slice without a reference left…}
--        {-2} nothing was done: the list has changed
--@include op
--@include number

local key, origin, skipped = P .. 'c' .. ARGV[9] .. '_' .. ARGV[10], ARGV[11], tonumber(ARGV[12])
local n = #origin / 24
local records = call('LRANGE', key, 0, n - 1)
if table.concat(records) ~= origin then return {-2} end

call('LTRIM', key, n, -1)
call('LPUSH', key, ARGV[13])
for i = skipped, 1, -1 do call('LPUSH', key, records[i]) end
local result, delayed = {0}, {}
for i = skipped + 1, n do
  local id, size = string.sub(records[i], 5, 12), string.sub(records[i], 13, 16)
  if id ~= '\0\0\0\0\0\0\0\0' then
    if ARGV[14] == '1' then
      delayed[#delayed + 1] = id .. size
    else
      local slice = decimal(id) .. '_' .. whole((struct.unpack('>I4', size)))
      if call('HINCRBY', P .. 'sliceRef', 'k' .. slice, -1) < 0 then
        result[#result + 1] = slice
      end
    end
  end
end
if #delayed > 0 then
  local hi, lo = struct.unpack('>I4I4', NOW)
  call('HSET', P .. 'delSlices',
    decimal(string.sub(ARGV[13], 5, 12)) .. '_' .. whole(hi * 4294967296 + lo),
    table.concat(delayed))
end
return record(result)
