/* SPDX-License-Identifier: MIT */
/*
 * namespace.h - gives internal symbols their ms_ prefix at link time.
 *
 * The sources use the field's short names.  Other programs, such as QEMU, export the same names.  tools/layers.py
 * proves that the library exports no symbol without the prefix.
 */
#ifndef MS_NAMESPACE_H
#define MS_NAMESPACE_H

#define batch_answer_holes ms_batch_answer_holes
#define batch_walk ms_batch_walk
#define dirty_log_check ms_dirty_log_check
#define dirty_log_clear ms_dirty_log_clear
#define dirty_log_create ms_dirty_log_create
#define dirty_log_get ms_dirty_log_get
#define dirty_log_harvest ms_dirty_log_harvest
#define dirty_log_peek ms_dirty_log_peek
#define dirty_log_put ms_dirty_log_put
#define flat_avx2 ms_flat_avx2
#define flat_avx2_blocks ms_flat_avx2_blocks
#define flat_avx512 ms_flat_avx512
#define flat_check ms_flat_check
#define flat_create ms_flat_create
#define flat_find_segment ms_flat_find_segment
#define flat_hvas ms_flat_hvas
#define flat_ids ms_flat_ids
#define flat_next ms_flat_next
#define flat_portable ms_flat_portable
#define flat_put ms_flat_put
#define flat_search_from ms_flat_search_from
#define id_hash_add ms_id_hash_add
#define id_hash_bits_for ms_id_hash_bits_for
#define id_hash_check ms_id_hash_check
#define id_hash_del ms_id_hash_del
#define id_hash_init ms_id_hash_init
#define id_hash_rehash ms_id_hash_rehash
#define id_hash_replace ms_id_hash_replace
#define interval_tree_add ms_interval_tree_add
#define interval_tree_check ms_interval_tree_check
#define interval_tree_del ms_interval_tree_del
#define interval_tree_first ms_interval_tree_first
#define interval_tree_init ms_interval_tree_init
#define interval_tree_next ms_interval_tree_next
#define interval_tree_replace ms_interval_tree_replace
#define memory_fail ms_memory_fail
#define memory_free ms_memory_free
#define memory_free_lines ms_memory_free_lines
#define memory_init ms_memory_init
#define memory_pool_alloc ms_memory_pool_alloc
#define memory_pool_free ms_memory_pool_free
#define memory_pool_has ms_memory_pool_has
#define memory_zalloc ms_memory_zalloc
#define memory_zalloc_lines ms_memory_zalloc_lines
#define patch_add ms_patch_add
#define patch_begin ms_patch_begin
#define patch_clone ms_patch_clone
#define patch_create ms_patch_create
#define patch_destroy ms_patch_destroy
#define patch_next ms_patch_next
#define patch_remove ms_patch_remove
#define point_reached ms_point_reached
#define point_set_hook ms_point_set_hook
#define process_forks ms_process_forks
#define rb_check ms_rb_check
#define rb_edge ms_rb_edge
#define rb_erase ms_rb_erase
#define rb_insert ms_rb_insert
#define rb_neighbour ms_rb_neighbour
#define rb_replace ms_rb_replace
#define rules_gpa_limit ms_rules_gpa_limit
#define rules_overlap ms_rules_overlap
#define rules_request ms_rules_request
#define set_index_is_valid ms_set_index_is_valid
#define slots_lock_defer_end ms_slots_lock_defer_end
#define slots_lock_release ms_slots_lock_release
#define slots_lock_run_pending_end ms_slots_lock_run_pending_end
#define slots_lock_try ms_slots_lock_try
#define slots_lock_wait ms_slots_lock_wait
#define srcu_cache ms_srcu_cache
#define srcu_deinit ms_srcu_deinit
#define srcu_end_sections ms_srcu_end_sections
#define srcu_find_reader ms_srcu_find_reader
#define srcu_init ms_srcu_init
#define srcu_total ms_srcu_total
#define srcu_wake_writer ms_srcu_wake_writer
#define stall_report_set ms_stall_report_set
#define synchronize_srcu ms_synchronize_srcu
#define synchronize_srcu_others ms_synchronize_srcu_others
#define thread_clock_ns ms_thread_clock_ns
#define thread_end_add ms_thread_end_add
#define thread_end_remove ms_thread_end_remove
#define thread_new_number ms_thread_new_number
#define thread_os_id ms_thread_os_id
#define thread_self ms_thread_self
#define thread_wait ms_thread_wait
#define thread_wake_all ms_thread_wake_all
#define tree_search_many ms_tree_search_many
#define update_check_caller ms_update_check_caller
#define update_step_end ms_update_step_end
#define vm_end_update ms_vm_end_update
#define vm_flush ms_vm_flush
#define vm_free_deferred ms_vm_free_deferred
#define vm_index_get ms_vm_index_get
#define vm_index_make ms_vm_index_make
#define vm_index_pays ms_vm_index_pays
#define vm_index_report_searches ms_vm_index_report_searches
#define vm_index_share ms_vm_index_share
#define vm_is_in_step ms_vm_is_in_step
#define vm_lock ms_vm_lock
#define vm_refuse ms_vm_refuse
#define vm_replace ms_vm_replace
#define vm_swap ms_vm_swap
#define vm_swap_begin ms_vm_swap_begin
#define vm_swap_end ms_vm_swap_end
#define vm_swap_finish ms_vm_swap_finish
#define vm_unlock ms_vm_unlock
#define writer_admit ms_writer_admit
#define writer_begin ms_writer_begin
#define writer_carry_out ms_writer_carry_out
#define writer_discard ms_writer_discard
#define writer_end ms_writer_end
#define writer_roll_back_staged ms_writer_roll_back_staged
#define writer_stage ms_writer_stage

#endif
