/* The front end of the demo's Lua: runs the script named on the command line. */
#include <stdio.h>
#include "lauxlib.h"
#include "lualib.h"

int main(int argc, char **argv) {
  lua_State *L = luaL_newstate();
  int failed;
  if (L == NULL || argc != 2) {
    fprintf(stderr, "usage: lua SCRIPT\n");
    return 2;
  }
  luaL_openlibs(L);
  failed = luaL_dofile(L, argv[1]);
  if (failed) fprintf(stderr, "lua: %s\n", lua_tostring(L, -1));
  lua_close(L);
  return failed;
}
