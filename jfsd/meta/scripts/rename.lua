-- Moves or exchanges entries (format.md §9.6).
--
-- KEYS[1] and ARGV[1…8]: see lib/op.lua
-- ARGV  9 source directory  10 name  11 target directory  12 new name
--      13 flags: 1 no replace, 2 exchange, 33 restore from the trash  14 caller's uid
--      15 sid, '' none  16 trash hour, '' deletes for real
--      17 inodes open here ' 12 34 ', or '?': not said  18 inode that 17 speaks of, '' any
--      19 moved directory '' or its inode  20 bytes and  21 inodes of its tree, itself included
--      22…24 the same of the directory that it is exchanged with
-- Result {0, inode, replaced inode or '', length of data to delete or '', sustained 1|0} and, but
--        for a repeat, the attr of the target directory and, if another, of the source
--        {-2, inode} nothing was done: is this inode open?
--        {-3, inode or '', inode or ''} nothing was done: how large are these trees?
-- Errors ENOENT EEXIST ENOTDIR EISDIR EPERM EINVAL EACCES ENOTEMPTY EDQUOT
--@include op
--@include trash
--@include remove

local src, name, dst, new_name = ARGV[9], ARGV[10], ARGV[11], ARGV[12]
local flags, uid, hour = tonumber(ARGV[13]), tonumber(ARGV[14]), ARGV[16]
local exchange, same = flags == 2, src == dst
if exchange then hour = '' end

local entry = call('HGET', P .. 'd' .. src, name)
if not entry then return {2} end
local ino = decimal(string.sub(entry, 2, 9))
if same and name == new_name then return {0, ino, '', '', 0} end
local d_entry = call('HGET', P .. 'd' .. dst, new_name)
if d_entry and flags % 2 == 1 then return {17} end
local type_, d_type, d_ino = string.byte(entry, 1), nil, nil
if d_entry then
  d_type, d_ino = string.byte(d_entry, 1), decimal(string.sub(d_entry, 2, 9))
  if d_ino == ino then return {0, ino, '', '', 0} end
  if not exchange and type_ == DIRECTORY and d_type ~= DIRECTORY then return {20} end
  if not exchange and type_ ~= DIRECTORY and d_type == DIRECTORY then return {21} end
end

local ps, pd, a = load(src), same or load(dst), load(ino)
if same then pd = ps end
if not ps or not pd or not a then return {2} end
if kind(ps) ~= DIRECTORY or kind(pd) ~= DIRECTORY then return {20} end
if in_trash(pd) and flags < 32 then return {2} end
if ino == dst or ino == decimal(parent(pd)) then return {1} end

-- True if directory `top` is `dir` or one of its ancestors.
local function encloses(top, dir)
  while dir ~= '1' and #dir < 19 do
    if dir == top then return true end
    local record_ = load(dir)
    if not record_ then return false end
    dir = decimal(parent(record_))
  end
  return false
end
if not same and type_ == DIRECTORY and encloses(ino, dst) then return {22} end
if not same and exchange and d_type == DIRECTORY and encloses(d_ino, src) then return {22} end

if frozen(ps) or immutable(pd) or frozen(a) then return {1} end
local owner = u32(a, 4)
if not same and uid ~= 0 and sticky(ps) and uid ~= owner
  and (uid ~= u32(ps, 4) or type_ == DIRECTORY) then
  return {13}
end

local ps_links, pd_links = 0, 0
local da, d_links, trashed_name
if d_entry then
  da = load(d_ino)
  if exchange and not da then return {2} end
  if da then
    if frozen(da) then return {1} end
    d_links = u32(da, 48)
    if skips_trash(da) then hour = '' end
    if hour ~= '' then
      trashed_name = trash_name(dst, d_ino, new_name)
      if d_type ~= DIRECTORY and d_links > 1 and in_hour(hour, trashed_name) then hour = '' end
    end
  else
    hour, d_links = '', 0
  end
  if exchange then
    if not same and d_type == DIRECTORY then pd_links, ps_links = -1, 1 end
  elseif d_type == DIRECTORY then
    if call('HLEN', P .. 'd' .. d_ino) > 0 then return {39} end
    pd_links = -1
  elseif hour == '' and d_links > 0 then
    d_links = d_links - 1
  end
  if da and uid ~= 0 and sticky(pd) and uid ~= u32(pd, 4) and uid ~= u32(da, 4) then
    return {13}
  end
elseif exchange then
  return {2}
end
if uid ~= 0 and sticky(ps) and uid ~= u32(ps, 4) and uid ~= owner then return {13} end
if not same and type_ == DIRECTORY then ps_links, pd_links = ps_links - 1, pd_links + 1 end

-- What moves, and what the target's directory loses or the source's gets in exchange.
local hi, lo = data_length(a)
local bytes, d_hi, d_lo = space(hi, lo), 0, 0
if da then d_hi, d_lo = data_length(da) end
local d_bytes = space(d_hi, d_lo)

local gone = d_entry and not exchange and hour == '' and (d_type == DIRECTORY or d_links == 0)
if gone and da and d_type == FILE and ARGV[15] ~= ''
  and (ARGV[17] == '?' or ARGV[18] ~= '' and ARGV[18] ~= d_ino) then
  return {-2, d_ino}
end

-- Directory quotas: those of one side only change.
local losing, gaining, d_chain = {}, {}, {}
local tree_bytes, tree_inodes, d_tree_bytes, d_tree_inodes = bytes, 1, d_bytes, 1
if not same or d_entry and not exchange then
  local from, to = same and {} or quota_chain(src), quota_chain(dst)
  d_chain = to
  if not same then
    local function without(list, other)
      local left = {}
      for _, x in ipairs(list) do
        local shared = false
        for _, y in ipairs(other) do shared = shared or x == y end
        if not shared then left[#left + 1] = x end
      end
      return left
    end
    losing, gaining = without(from, to), without(to, from)
  end
  if #losing + #gaining > 0 then
    local ask, d_ask = '', ''
    if type_ == DIRECTORY and ARGV[19] ~= ino then ask = ino end
    if exchange and d_type == DIRECTORY and ARGV[22] ~= d_ino then d_ask = d_ino end
    if ask ~= '' or d_ask ~= '' then return {-3, ask, d_ask} end
    if type_ == DIRECTORY then tree_bytes, tree_inodes = tonumber(ARGV[20]), tonumber(ARGV[21]) end
    if exchange and d_type == DIRECTORY then
      d_tree_bytes, d_tree_inodes = tonumber(ARGV[23]), tonumber(ARGV[24])
    end
    local back_bytes, back_inodes = 0, 0
    if exchange then back_bytes, back_inodes = d_tree_bytes, d_tree_inodes end
    local over = chain_over(gaining, tree_bytes - back_bytes, tree_inodes - back_inodes)
      or chain_over(losing, back_bytes - tree_bytes, back_inodes - tree_inodes)
    if over then return {over} end
  end
end

-- ---- from here on everything is decided
local function move_parents(node, from, to)
  call('HINCRBY', P .. 'p' .. node, to, 1)
  call('HINCRBY', P .. 'p' .. node, from, -1)
end

local replaced, freed, sustained = '', '', 0
if exchange then
  da = with_ctime(da)
  if not same then
    if parent(da) ~= NO_PARENT then da = with_parent(da, octets(src))
    else move_parents(d_ino, dst, src) end
  end
  call('SET', P .. 'i' .. d_ino, da)
  call('HSET', P .. 'd' .. src, name, d_entry)
else
  call('HDEL', P .. 'd' .. src, name)
  if d_entry then
    replaced = d_ino
    dir_stats(dst, -d_hi, -d_lo, -d_bytes, -1)
    chain_add(d_chain, -d_bytes, -1)
    if d_type == DIRECTORY then
      for _, key in ipairs({'dirDataLength', 'dirUsedSpace', 'dirUsedInodes',
        'dirQuota', 'dirQuotaUsedSpace', 'dirQuotaUsedInodes'}) do
        call('HDEL', P .. key, d_ino)
      end
    end
    if hour ~= '' then
      local bin, bin8 = hour_dir(hour)
      da = with_ctime(da)
      if parent(da) ~= NO_PARENT then da = with_parent(da, bin8)
      else move_parents(d_ino, dst, bin) end
      call('SET', P .. 'i' .. d_ino, da)
      call('HSET', P .. 'd' .. bin, trashed_name, d_entry)
      dir_stats(bin, d_hi, d_lo, d_bytes, 1)
    elseif gone then
      if da and d_type ~= DIRECTORY then da = relinked(da, d_links - u32(da, 48)) end
      freed, sustained = delete_node(d_ino, d_type, da, ARGV[15], ARGV[17])
    else
      da = relinked(da, d_links - u32(da, 48))
      call('SET', P .. 'i' .. d_ino, da)
      if parent(da) == NO_PARENT then call('HINCRBY', P .. 'p' .. d_ino, dst, -1) end
    end
  end
end

a = with_ctime(a)
if not same then
  if parent(a) ~= NO_PARENT then a = with_parent(a, octets(dst)) else move_parents(ino, src, dst) end
  if #src < 19 then
    ps = touched(ps, ps_links)
    call('SET', P .. 'i' .. src, ps)
  end
  dir_stats(src, -hi, -lo, -bytes, -1)
  dir_stats(dst, hi, lo, bytes, 1)
  chain_add(losing, -tree_bytes, -tree_inodes)
  chain_add(gaining, tree_bytes, tree_inodes)
  if exchange then
    dir_stats(src, d_hi, d_lo, d_bytes, 1)
    dir_stats(dst, -d_hi, -d_lo, -d_bytes, -1)
    chain_add(losing, d_tree_bytes, d_tree_inodes)
    chain_add(gaining, -d_tree_bytes, -d_tree_inodes)
  end
  pd = touched(pd, pd_links)
  call('SET', P .. 'i' .. dst, pd)
elseif #dst < 19 then
  pd = touched(pd, ps_links + pd_links)
  call('SET', P .. 'i' .. dst, pd)
end
call('SET', P .. 'i' .. ino, a)
call('HSET', P .. 'd' .. dst, new_name, entry)
return record({0, ino, replaced, freed, sustained}, pd, not same and ps)
