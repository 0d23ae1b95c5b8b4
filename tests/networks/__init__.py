"""Small networks of other people's classes: which they are, and what is asked of each."""

from networks import language, various
from networks.network import Network

NETWORKS: tuple[Network, ...] = language.NETWORKS + various.NETWORKS
