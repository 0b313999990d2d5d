-- Drop fields of sliceRef that say nothing any more (format.md §11.5).
--
-- ARGV[9] negative: the objects of these slices are deleted; zero: one reference, as without field
-- ARGV[10…] fields
-- Result {0, how many were dropped}; a field whose value is another one by now stays.
--@include op

local dropped, negative = 0, ARGV[9] == 'negative'
for i = 10, #ARGV do
  local value = tonumber(call('HGET', P .. 'sliceRef', ARGV[i]))
  if value and (negative and value < 0 or not negative and value == 0) then
    dropped = dropped + call('HDEL', P .. 'sliceRef', ARGV[i])
  end
end
return { 0, dropped }
