-- Delete slice lists of a file that is gone, and the references in them (format.md §10.3).
--
-- ARGV[9] inode  [10] first index  [11] index behind the last  [12] records after which to stop
-- Result {0, index to go on with, 1 if the list before it was there, slices without reference as
-- {id, size}…}. What is freed but not heard of (the reply was lost) stays in sliceRef as a
-- negative number, which a job finds. Elements that are no records are dropped.
--@include op
--@include refs

local index, last, room = tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12])
local result = { 0, 0, 0 }
while index < last and room > 0 do
  local key = P .. 'c' .. ARGV[9] .. '_' .. whole(index)
  local records = call('LRANGE', key, 0, -1)
  if #records > 0 then call('DEL', key) end
  for _, r in ipairs(records) do
    if #r == 24 and string.sub(r, 5, 12) ~= '\0\0\0\0\0\0\0\0' then
      release(string.sub(r, 5, 12), (struct.unpack('>I4', r, 13)), result)
    end
  end
  result[3] = #records > 0 and 1 or 0
  room = room - #records
  index = index + 1
end
result[2] = index
return result
