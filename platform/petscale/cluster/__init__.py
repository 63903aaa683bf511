"""Clusters: the session that work runs in, the nodes of a cluster, jobs sent to one."""
