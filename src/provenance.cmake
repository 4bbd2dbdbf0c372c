# SPDX-License-Identifier: MIT
#
# Writes build.json for the installed package: the folder and the commit of the source, the tree that git gives src/ as
# it is, the tree of the commit, and the flags of the compiler.  The fingerprint of each measurement has them.
# Nothing is written to the repository: the index and the new objects are in the build folder.

find_package(Git QUIET)

function(git_answer result)
  set(answer "")
  if(GIT_FOUND)
    execute_process(COMMAND ${CMAKE_COMMAND} -E env ${ARGN} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR}
      OUTPUT_VARIABLE answer OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
    if(failed)
      set(answer "")
    endif()
  endif()
  set(${result} "${answer}" PARENT_SCOPE)
endfunction()

git_answer(top ${GIT_EXECUTABLE} rev-parse --show-toplevel)
file(REAL_PATH "${PROJECT_SOURCE_DIR}" here)
set(commit "")
set(committed "")
set(tree "")
if(top STREQUAL here) # not a copy of the source inside another repository
  git_answer(commit ${GIT_EXECUTABLE} rev-parse HEAD)
  git_answer(committed ${GIT_EXECUTABLE} rev-parse HEAD:src)
  git_answer(objects ${GIT_EXECUTABLE} rev-parse --path-format=absolute --git-path objects)
  set(scratch ${PROJECT_BINARY_DIR}/provenance)
  file(REMOVE_RECURSE ${scratch})
  file(MAKE_DIRECTORY ${scratch}/objects)
  set(aside GIT_INDEX_FILE=${scratch}/index GIT_OBJECT_DIRECTORY=${scratch}/objects
    GIT_ALTERNATE_OBJECT_DIRECTORIES=${objects})
  git_answer(ignored ${aside} ${GIT_EXECUTABLE} add src)
  git_answer(tree ${aside} ${GIT_EXECUTABLE} write-tree --prefix=src/)
elseif(DEFINED ENV{MEMSLOTS_COMMIT}) # tools that build a copy of a commit name it
  set(commit $ENV{MEMSLOTS_COMMIT})
endif()

string(TOUPPER "${CMAKE_BUILD_TYPE}" kind)
set(flags "${CMAKE_C_FLAGS} ${CMAKE_C_FLAGS_${kind}}")
string(STRIP "${flags}" flags)
string(REGEX REPLACE "[\"\\\\]" "'" flags "${flags}")
file(CONFIGURE OUTPUT build.json CONTENT
  "{\"folder\": \"@here@\", \"commit\": \"@commit@\", \"tree\": \"@tree@\", \"committed\": \"@committed@\", \"flags\": \"@flags@\"}\n"
  @ONLY)
