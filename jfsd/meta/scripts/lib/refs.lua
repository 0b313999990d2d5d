-- References of slices (format.md §11.5): field k<id>_<size> of sliceRef is their number minus one.
--@include number

-- Take one reference away; the slice is appended to `freed` as {id text, size} when none is left.
local function release(id8, size, freed)
  local id = decimal(id8)
  if call('HINCRBY', P .. 'sliceRef', 'k' .. id .. '_' .. whole(size), -1) < 0 then
    freed[#freed + 1] = { id, size }
  end
end

-- Count one more reference.
local function share(id8, size)
  call('HINCRBY', P .. 'sliceRef', 'k' .. decimal(id8) .. '_' .. whole(size), 1)
end
