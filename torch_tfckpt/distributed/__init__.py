"""State spread over many ranks.

shards        which part of a tensor a DTensor of torch.distributed holds on this rank
reading       read only this part of a stored tensor
ranks         Ranks: who saves and restores together, and through which store they agree
calls         its saves and restores, one after another
commit        one save or restore of all ranks, agreed over that store
failures      errors of ranks, as JSON and in messages
rank_save     a save of all ranks: what each writes, and how the parts are merged
store_thread  calls of a store that may never answer

May use: stores of torch.distributed, which need no process group. May not: call a collective.
"""
