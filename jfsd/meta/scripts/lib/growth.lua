-- A file's length changes: who is charged for it, and may it grow (format.md §16).
--@include account

-- Directories that hold the file, as a flat list: directory, number of links there. A file
-- without any name left is in none.
local function homes(ino, a)
  if u32(a, 48) == 0 then return {} end
  if parent(a) ~= NO_PARENT then return {decimal(parent(a)), 1} end
  local found, all = {}, call('HGETALL', P .. 'p' .. ino)
  for i = 1, #all, 2 do
    local links = tonumber(all[i + 1])
    if links > 0 then
      found[#found + 1] = all[i]
      found[#found + 1] = links
    end
  end
  return found
end

-- Errno if the file may not grow by `bytes` (> 0), else nil.
local function growth_over(ino, a, bytes)
  if bytes <= 0 then return nil end
  local over = owner_over('user', whole(u32(a, 4)), bytes, 0)
    or owner_over('group', whole(u32(a, 8)), bytes, 0) or volume_over(bytes, 0)
  if over or not WITH_TREES then return over end
  local dirs = homes(ino, a)
  for i = 1, #dirs, 2 do
    over = chain_over(quota_chain(dirs[i]), bytes * dirs[i + 1], 0)
    if over then return over end
  end
end

-- Charges everyone for a change of length (halves, each may be negative) and of space.
local function grow(ino, a, hi, lo, bytes)
  if hi == 0 and lo == 0 then return end
  count(bytes, 0)
  if bytes ~= 0 then owners_add(u32(a, 4), u32(a, 8), bytes, 0) end
  local dirs = homes(ino, a)
  for i = 1, #dirs, 2 do
    local links = dirs[i + 1]
    dir_stats(dirs[i], hi * links, lo * links, bytes * links, 0)
    if bytes ~= 0 then chain_add(quota_chain(dirs[i]), bytes * links, 0) end
  end
end
