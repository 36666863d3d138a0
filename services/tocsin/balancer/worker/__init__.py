"""The balancer's worker: does classical tasks, one consumer group a pool."""
