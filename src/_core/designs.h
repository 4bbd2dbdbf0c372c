/* SPDX-License-Identifier: MIT */
/*
 * designs.h - every design of sets in this build, by the name that users give.  The first is the default.
 *
 * CMake makes the list from the files NAME_set.c of src/_core: "tree", then the others by name.  NAME_set.c defines
 * DESIGN_OF(NAME).  A compiler that is called without CMake gets the designs that this project ships.
 */
#ifdef MEMSLOTS_DESIGNS
MEMSLOTS_DESIGNS
#else
DESIGN(tree)  /* KVM since Linux 5.17 */
DESIGN(array) /* KVM before Linux 5.17 */
DESIGN(list)  /* walks the slots for each operation */
#endif
