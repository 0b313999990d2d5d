-- Store statistics of a directory that were computed from its entries (format.md §16.1).
--
-- KEYS[1] and ARGV[1…8]: see lib/op.lua
-- ARGV[9] inode  [10] attribute record from before the entries were read
-- [11] length of data  [12] bytes used  [13] entries
-- Result {0, 1} stored, or another client has; {0, 0} the directory has changed meanwhile.
--@include op

local ino = ARGV[9]
if call('GET', P .. 'i' .. ino) ~= ARGV[10] then return { 0, 0 } end
local complete = true
local stats = { dirDataLength = ARGV[11], dirUsedSpace = ARGV[12], dirUsedInodes = ARGV[13] }
for key in pairs(stats) do
  local value = call('HGET', P .. key, ino)
  complete = complete and value and string.sub(value, 1, 1) ~= '-'
end
if not complete then
  for key, value in pairs(stats) do call('HSET', P .. key, ino, value) end
end
return { 0, 1 }
