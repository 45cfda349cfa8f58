"""Managing what an engine keeps: topics, partitions, groups, servers."""

from .engine import OPERATIONS, EngineAdmin, named
from .ensuring import TopicChange
from .results import (
    ClusterInfo,
    GroupInfo,
    Health,
    Lag,
    MemberInfo,
    NodeInfo,
    PartitionInfo,
    PartitionLag,
    TopicInfo,
)
from .surface import Admin, Cluster, Groups, Partitions, ResetTo, Topics
from .watching import LagSample

__all__ = [
    "OPERATIONS",
    "Admin",
    "Cluster",
    "ClusterInfo",
    "EngineAdmin",
    "GroupInfo",
    "Groups",
    "Health",
    "Lag",
    "LagSample",
    "MemberInfo",
    "NodeInfo",
    "PartitionInfo",
    "PartitionLag",
    "Partitions",
    "ResetTo",
    "TopicChange",
    "TopicInfo",
    "Topics",
    "named",
]
