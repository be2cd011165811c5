"""State spread over many ranks.

shards   which part of a tensor a DTensor of torch.distributed holds on this rank
reading  read only this part of a stored tensor
"""
