//! Numbers of `include/uapi/linux/netfilter/nf_tables.h` and `nfnetlink.h`.

/// `nfnetlink.h`: the subsystem in the high byte of a message's type.
pub(super) const SUBSYSTEM: u16 = 10;
/// `nfnetlink.h`: opens a transaction.
pub(super) const BATCH_BEGIN: u16 = 16;
/// `nfnetlink.h`: commits a transaction.
pub(super) const BATCH_END: u16 = 17;

/// `netfilter.h`, NFPROTO_*: families of tables, and of packets.
pub(super) mod family {
    pub(in super::super) const UNSPECIFIED: u8 = 0;
    pub(in super::super) const INET: u8 = 1;
    pub(in super::super) const IPV4: u8 = 2;
    pub(in super::super) const IPV6: u8 = 10;
}

/// NFT_MSG_*: what a message asks for.
pub(super) mod msg {
    pub(in super::super) const NEWTABLE: u16 = 0;
    pub(in super::super) const GETTABLE: u16 = 1;
    pub(in super::super) const DELTABLE: u16 = 2;
    pub(in super::super) const NEWCHAIN: u16 = 3;
    pub(in super::super) const GETCHAIN: u16 = 4;
    pub(in super::super) const NEWRULE: u16 = 6;
    pub(in super::super) const GETRULE: u16 = 7;
    pub(in super::super) const NEWSET: u16 = 9;
    pub(in super::super) const NEWSETELEM: u16 = 12;
    pub(in super::super) const GETGEN: u16 = 16;
}

/// NFTA_GEN_*.
pub(super) mod generation {
    pub(in super::super) const ID: u16 = 1;
}

/// NFTA_TABLE_*.
pub(super) mod table {
    pub(in super::super) const NAME: u16 = 1;
    pub(in super::super) const FLAGS: u16 = 2;
    pub(in super::super) const USE: u16 = 3;
    pub(in super::super) const USERDATA: u16 = 6;
}

/// NFTA_CHAIN_* and NFTA_HOOK_*.
pub(super) mod chain {
    pub(in super::super) const TABLE: u16 = 1;
    pub(in super::super) const NAME: u16 = 3;
    pub(in super::super) const HOOK: u16 = 4;
    pub(in super::super) const POLICY: u16 = 5;
    pub(in super::super) const USE: u16 = 6;
    pub(in super::super) const TYPE: u16 = 7;
    pub(in super::super) const HOOK_NUMBER: u16 = 1;
    pub(in super::super) const HOOK_PRIORITY: u16 = 2;
}

/// NFTA_RULE_*.
pub(super) mod rule {
    pub(in super::super) const TABLE: u16 = 1;
    pub(in super::super) const CHAIN: u16 = 2;
    pub(in super::super) const EXPRESSIONS: u16 = 4;
    pub(in super::super) const USERDATA: u16 = 7;
}

/// NFTA_SET_* and NFT_SET_*.
pub(super) mod set {
    pub(in super::super) const TABLE: u16 = 1;
    pub(in super::super) const NAME: u16 = 2;
    pub(in super::super) const FLAGS: u16 = 3;
    pub(in super::super) const KEY_TYPE: u16 = 4;
    pub(in super::super) const KEY_LEN: u16 = 5;
    pub(in super::super) const DESC: u16 = 9;
    pub(in super::super) const ID: u16 = 10;
    pub(in super::super) const DESC_SIZE: u16 = 1;
    pub(in super::super) const CONSTANT: u32 = 2;
    pub(in super::super) const INTERVAL: u32 = 4;
}

/// NFTA_SET_ELEM_LIST_*, NFTA_SET_ELEM_*.
pub(super) mod element {
    pub(in super::super) const LIST_TABLE: u16 = 1;
    pub(in super::super) const LIST_SET: u16 = 2;
    pub(in super::super) const LIST_ELEMENTS: u16 = 3;
    pub(in super::super) const KEY: u16 = 1;
    pub(in super::super) const FLAGS: u16 = 3;
    pub(in super::super) const INTERVAL_END: u32 = 1;
}

/// NFTA_EXPR_*, NFTA_LIST_ELEM, NFTA_DATA_*, NFTA_VERDICT_*, registers.
pub(super) mod expression {
    pub(in super::super) const LIST_ELEM: u16 = 1;
    pub(in super::super) const NAME: u16 = 1;
    pub(in super::super) const DATA: u16 = 2;
    pub(in super::super) const DATA_VALUE: u16 = 1;
    pub(in super::super) const DATA_VERDICT: u16 = 2;
    pub(in super::super) const VERDICT_CODE: u16 = 1;
    pub(in super::super) const VERDICT_CHAIN: u16 = 2;
    pub(in super::super) const REGISTER_VERDICT: u32 = 0;
    pub(in super::super) const REGISTER_1: u32 = 1;
}

/// NFTA_META_*, NFT_META_*.
pub(super) mod meta {
    pub(in super::super) const DREG: u16 = 1;
    pub(in super::super) const KEY: u16 = 2;
    pub(in super::super) const KEY_MARK: u32 = 3;
    pub(in super::super) const KEY_IIFNAME: u32 = 6;
    pub(in super::super) const KEY_OIFNAME: u32 = 7;
    pub(in super::super) const KEY_NFPROTO: u32 = 15;
    pub(in super::super) const KEY_L4PROTO: u32 = 16;
    pub(in super::super) const KEY_IIFGROUP: u32 = 21;
}

/// NFTA_PAYLOAD_*, NFT_PAYLOAD_*.
pub(super) mod payload {
    pub(in super::super) const DREG: u16 = 1;
    pub(in super::super) const BASE: u16 = 2;
    pub(in super::super) const OFFSET: u16 = 3;
    pub(in super::super) const LEN: u16 = 4;
    pub(in super::super) const NETWORK_HEADER: u32 = 1;
    pub(in super::super) const TRANSPORT_HEADER: u32 = 2;
}

/// NFTA_FIB_*, NFT_FIB_RESULT_*.
pub(super) mod fib {
    pub(in super::super) const DREG: u16 = 1;
    pub(in super::super) const RESULT: u16 = 2;
    pub(in super::super) const FLAGS: u16 = 3;
    pub(in super::super) const RESULT_OIF: u32 = 1;
    pub(in super::super) const RESULT_ADDRTYPE: u32 = 3;
    pub(in super::super) const SADDR: u32 = 1;
    pub(in super::super) const DADDR: u32 = 2;
    pub(in super::super) const IIF: u32 = 8;
    pub(in super::super) const PRESENT: u32 = 32;
}

/// NFTA_CMP_*, NFT_CMP_*.
pub(super) mod cmp {
    pub(in super::super) const SREG: u16 = 1;
    pub(in super::super) const OP: u16 = 2;
    pub(in super::super) const DATA: u16 = 3;
    pub(in super::super) const EQUAL: u32 = 0;
    pub(in super::super) const NOT_EQUAL: u32 = 1;
}

/// NFTA_BITWISE_*.
pub(super) mod bitwise {
    pub(in super::super) const SREG: u16 = 1;
    pub(in super::super) const DREG: u16 = 2;
    pub(in super::super) const LEN: u16 = 3;
    pub(in super::super) const MASK: u16 = 4;
    pub(in super::super) const XOR: u16 = 5;
}

/// NFTA_LOOKUP_*, NFT_LOOKUP_F_INV.
pub(super) mod lookup {
    pub(in super::super) const SET: u16 = 1;
    pub(in super::super) const SREG: u16 = 2;
    pub(in super::super) const FLAGS: u16 = 5;
    pub(in super::super) const INVERTED: u32 = 1;
}

/// NFTA_COUNTER_*.
pub(super) mod counter {
    pub(in super::super) const BYTES: u16 = 1;
    pub(in super::super) const PACKETS: u16 = 2;
}

/// NFTA_IMMEDIATE_*.
pub(super) mod immediate {
    pub(in super::super) const DREG: u16 = 1;
    pub(in super::super) const DATA: u16 = 2;
}

/// NFTA_MASQ_FLAGS, and `nf_nat.h`: NF_NAT_RANGE_PROTO_RANDOM_FULLY.
pub(super) mod masquerade {
    pub(in super::super) const FLAGS: u16 = 1;
    pub(in super::super) const RANDOM_FULLY: u32 = 16;
}

/// `netfilter.h` and NFT_*: verdicts.
pub(super) mod verdict {
    pub(in super::super) const DROP: i32 = 0;
    pub(in super::super) const ACCEPT: i32 = 1;
    pub(in super::super) const JUMP: i32 = -3;
    pub(in super::super) const RETURN: i32 = -5;
}
