-- Remove a directory that was being cloned and has no entry, now that it is empty (format.md §9.17).
--
-- KEYS[1] and ARGV[1…8]: see lib/op.lua
-- ARGV[9] inode
-- Result {0}; {39} ENOTEMPTY. Nothing is done when it is noted nowhere: it was attached or removed.
--@include op
--@include account

local ino = ARGV[9]
if not call('ZSCORE', P .. 'detachedNodes', ino) then return { 0 } end
if call('HLEN', P .. 'd' .. ino) > 0 then return { 39 } end
local a = load(ino)
if a then
  chain_add(quota_chain(decimal(parent(a))), -4096, -1)
  owners_add(u32(a, 4), u32(a, 8), -4096, -1)
  count(-4096, -1)
end
call('DEL', P .. 'i' .. ino, P .. 'x' .. ino)
for _, key in ipairs({ 'dirDataLength', 'dirUsedSpace', 'dirUsedInodes' }) do
  call('HDEL', P .. key, ino)
end
call('ZREM', P .. 'detachedNodes', ino)
return { 0 }
