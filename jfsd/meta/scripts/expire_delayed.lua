-- Release the slices that one compaction replaced (format.md §11.6).
--
-- ARGV[9] field of delSlices
-- Result {0, slices without reference as {id, size}…}; just {0} if another client did it.
--@include op
--@include refs

local result = { 0 }
local delayed = call('HGET', P .. 'delSlices', ARGV[9])
if not delayed then return result end
for at = 1, #delayed - 11, 12 do
  release(string.sub(delayed, at, at + 7), (struct.unpack('>I4', delayed, at + 8)), result)
end
call('HDEL', P .. 'delSlices', ARGV[9])
return result
