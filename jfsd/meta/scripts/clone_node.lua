-- Clone one node with its attributes, xattrs and slice lists (format.md §9.17).
--
-- KEYS[1] and ARGV[1…8]: see lib/op.lua
-- ARGV[9] source  [10] new inode  [11] new parent  [12] name; '' a directory without entry yet,
-- noted in detachedNodes  [13] uid  [14] gid  [15] umask; '' keeps owner, mode and times
-- [16] 1: the clone's top, whose parent's times change  [17] '' or what was mtime and length
-- (20 bytes) when the chunk indexes [18…] were listed, for a file of too many chunks to try
-- Result {0, attributes}; {-2} the file changed while its chunks were listed, or has too many and
-- no list. Errors ENOENT ENOTDIR EPERM EEXIST ENOSPC EDQUOT.
--@include op
--@include account
--@include refs

local MAX_TRIED = 20000
local source, ino, dir, name = ARGV[9], ARGV[10], ARGV[11], ARGV[12]
local top = ARGV[16] == '1'
local a, up = load(source), load(dir)
if not a or not up then return { 2 } end
local type_ = kind(a)
if kind(up) ~= DIRECTORY then return { 20 } end
if top and in_trash(up) then return { 2 } end
if top and immutable(up) then return { 1 } end
if call('HEXISTS', P .. 'd' .. dir, name) == 1 and name ~= '' then return { 17 } end

local hi, lo = data_length(a)
local bytes = space(hi, lo)
local chunks = hi * 64 + math.ceil(lo / 67108864)
if ARGV[17] ~= '' and string.sub(a, 24, 35) .. string.sub(a, 52, 59) ~= ARGV[17] then
  return { -2 }
end
if ARGV[17] == '' and chunks > MAX_TRIED then return { -2 } end

local uid, gid = u32(a, 4), u32(a, 8)
local head, times = string.sub(a, 1, 3), string.sub(a, 12, 47)
if ARGV[15] ~= '' then
  uid, gid = tonumber(ARGV[13]), tonumber(ARGV[14])
  local bits = bit.band(mode(a), bit.bnot(tonumber(ARGV[15])))
  head = string.sub(a, 1, 1) .. struct.pack('>I2', type_ * 4096 + bits)
  times = NOW .. NOW .. NOW
end
local chain = quota_chain(dir)
local over = owner_over('user', whole(uid), bytes, 1) or owner_over('group', whole(gid), bytes, 1)
  or volume_over(bytes, 1) or chain_over(chain, bytes, 1)
if over then return { over } end

local links = type_ == DIRECTORY and 2 or 1
local copy = head .. struct.pack('>I4I4', uid, gid) .. times .. struct.pack('>I4', links)
  .. string.sub(a, 52, 63) .. octets(dir) .. string.sub(a, 72)
call('SET', P .. 'i' .. ino, copy)
local xattrs = call('HGETALL', P .. 'x' .. source)
for i = 1, #xattrs, 2 do call('HSET', P .. 'x' .. ino, xattrs[i], xattrs[i + 1]) end
if type_ == SYMLINK then
  call('SET', P .. 's' .. ino, call('GET', P .. 's' .. source) or '')
elseif type_ == DIRECTORY then
  for _, key in ipairs({ 'dirDataLength', 'dirUsedSpace', 'dirUsedInodes' }) do
    call('HSET', P .. key, ino, '0')
  end
end

local function clone_chunk(index)
  local records = call('LRANGE', P .. 'c' .. source .. '_' .. index, 0, -1)
  for _, r in ipairs(records) do
    call('RPUSH', P .. 'c' .. ino .. '_' .. index, r)
    if #r == 24 and string.sub(r, 5, 12) ~= '\0\0\0\0\0\0\0\0' then
      share(string.sub(r, 5, 12), (struct.unpack('>I4', r, 13)))
    end
  end
end
if type_ == FILE and ARGV[17] == '' then
  for index = 0, chunks - 1 do clone_chunk(whole(index)) end
elseif type_ == FILE then
  for i = 18, #ARGV do clone_chunk(ARGV[i]) end
end

count(bytes, 1)
owners_add(uid, gid, bytes, 1)
chain_add(chain, bytes, 1)
if name == '' then
  local second, rest = struct.unpack('>I4I4', NOW)
  call('ZADD', P .. 'detachedNodes', whole(second * 4294967296 + rest), ino)
  return record({ 0, copy })
end
dir_stats(dir, hi, lo, bytes, 1)
call('HSET', P .. 'd' .. dir, name, string.char(type_) .. octets(ino))
local more = type_ == DIRECTORY and 1 or 0
if top then
  call('SET', P .. 'i' .. dir, touched(up, more))
elseif more == 1 then
  call('SET', P .. 'i' .. dir,
    string.sub(up, 1, 47) .. struct.pack('>I4', u32(up, 48) + 1) .. string.sub(up, 52))
end
return record({ 0, copy })
