-- What is left to do for a node that lost a name (format.md §9.3), shared by unlink and rename.
--@include attr
--@include account

-- True if `open`, a list ' 12 34 ', has the inode.
local function is_open(open, ino)
  return string.find(open, ' ' .. ino .. ' ', 1, true) ~= nil
end

-- The last link is gone. `a` is the record with nlink 0, or nil if it was missing, then `type_`
-- is all that is known. An open file lives on, sustained by session `sid`; anything else is
-- deleted. Returns decimal length of data to delete or '', and 1 if sustained.
local function delete_node(ino, type_, a, sid, open)
  local hi, lo = 0, 0
  if a then hi, lo = data_length(a) end
  local freed, sustained = '', 0
  if a and type_ == FILE and sid ~= '' and is_open(open, ino) then
    call('SET', P .. 'i' .. ino, a)
    call('SADD', P .. 'session' .. sid, ino)
    sustained = 1
  else
    if type_ == FILE then
      freed = decimal(struct.pack('>I4I4', hi, lo))
      local s_hi, s_lo = struct.unpack('>I4I4', NOW)
      call('ZADD', P .. 'delfiles', whole(s_hi * 4294967296 + s_lo), ino .. ':' .. freed)
    elseif type_ == SYMLINK then
      call('DEL', P .. 's' .. ino)
    end
    call('DEL', P .. 'i' .. ino)
    local bytes = space(hi, lo)
    count(-bytes, -1)
    if a then owners_add(u32(a, 4), u32(a, 8), -bytes, -1) end
  end
  call('DEL', P .. 'x' .. ino)
  if not a or parent(a) == NO_PARENT then call('DEL', P .. 'p' .. ino) end
  return freed, sustained
end
