/* SPDX-License-Identifier: MIT */
/*
 * designs.h - every design of sets in this build, by the name that users give; the first is the default.
 *
 * A line here registers the design of src/_core/NAME_set.c, which defines `DESIGN_OF(NAME)`.
 */
DESIGN(tree)  /* KVM since Linux 5.17 */
DESIGN(array) /* KVM before Linux 5.17 */
DESIGN(list)  /* everything by a walk */
