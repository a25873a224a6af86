-- Something for the freshly built interpreter to do.
local function fib(n) if n < 2 then return n end return fib(n - 1) + fib(n - 2) end
local words = {}
for word in ("three nodes one tree"):gmatch("%a+") do words[#words + 1] = word end
print(_VERSION, "fib(24) = " .. fib(24), table.concat(words, "-"))
