-- Deletes a file that was unlinked while open, at its last close (format.md §10.4).
--
-- KEYS[1] and ARGV[1…8]: see lib/op.lua
-- ARGV  9 inode  10 sid
-- Result {0, length of data to delete or ''}
--@include op
--@include remove

local ino = ARGV[9]
local a = load(ino)
local freed = ''
if a and u32(a, 48) == 0 then
  freed = delete_node(ino, kind(a), a, '', '')
end
call('SREM', P .. 'session' .. ARGV[10], ino)
return record({0, freed})
