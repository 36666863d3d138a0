"""The balancer: operations spread over pools of classical workers."""
