# Builds Lua with the dependencies that the compiler writes down; each recipe tells where it ran.
CC = gcc
CFLAGS = -O2 -Wall -DLUA_USE_POSIX -MMD -MP
SRC = $(wildcard src/*.c)
OBJ = $(SRC:src/%.c=obj/%.o)

lua: $(OBJ)
	@echo "link $@ on $$(uname -n)"
	@$(CC) -o $@ $(OBJ) -lm

obj/%.o: src/%.c
	@echo "compile $< on $$(uname -n)"
	@$(CC) $(CFLAGS) -c -o $@ $<

-include $(OBJ:.o=.d)
