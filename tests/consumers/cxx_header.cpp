// SPDX-License-Identifier: MIT
// memslots.h as a C++ program sees it: it compiles without a warning, links, and answers.
#include <memslots.h>

#include <cstdio>
#include <string>

static int fail(const char *what)
{
	std::fprintf(stderr, "cxx_header: %s\n", what);
	return 1;
}

int main()
{
	ms_config config{};
	ms_config_init(&config);
	ms_vm *vm = nullptr;
	if (ms_vm_create(&config, &vm) != 0)
		return fail("ms_vm_create");

	ms_userspace_memory_region region{};
	region.guest_memfd = -1;
	region.guest_phys_addr = 0x10 * MS_PAGE_SIZE;
	region.memory_size = 4 * MS_PAGE_SIZE;
	region.userspace_addr = 0x7f0000000000;
	ms_error error{};
	if (ms_set_user_memory_region(vm, &region, &error) != 0)
		return fail("ms_set_user_memory_region");
	if (ms_gfn_to_hva(vm, 0, 0x12) != region.userspace_addr + 2 * MS_PAGE_SIZE)
		return fail("ms_gfn_to_hva inside the slot");
	if (ms_gfn_to_hva(vm, 0, 0x14) != MS_HVA_ERR_BAD)
		return fail("ms_gfn_to_hva in a hole");
	region.slot = 1;
	if (ms_set_user_memory_region(vm, &region, &error) == 0 || ms_rule_name(error.rule) != std::string("OVERLAP"))
		return fail("ms_rule_name");
	if (ms_vm_close(vm, &error) != 0)
		return fail("ms_vm_close");
	ms_vm_destroy(vm);
	std::puts("cxx_header: memslots.h compiles, links and answers from C++");
	return 0;
}
