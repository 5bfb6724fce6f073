/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What our programs use of the kernel, written out: no header of any kernel or library is included,
 * so the objects are the same bytes wherever they are built.
 *
 * Everything here is stable ABI (include/uapi/linux/bpf.h): contexts are rewritten by the verifier,
 * helpers have fixed numbers, so one object runs on every kernel and needs no relocation.
 */
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef long long __s64;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
/* Without holes. Aligned as said, or every field would be read byte by byte. */
#define PACKED(alignment) __attribute__((packed, aligned(alignment)))
#define NULL ((void *)0)

/* Definitions of maps, as libbpf reads them from the object's BTF. */
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name

enum { MAP_HASH = 1, MAP_ARRAY = 2, MAP_PERCPU_ARRAY = 6, MAP_LRU_HASH = 9, MAP_LPM_TRIE = 11,
       MAP_RINGBUF = 27 };
enum { MAP_NO_PREALLOC = 1 };
enum { XDP_DROP = 1, XDP_PASS = 2, XDP_TX = 3 };
enum { TC_OK = 0, TC_SHOT = 2 };
enum { ANY = 0 };
enum { BEHIND_ETHERNET = 1 };              /* where `adjust_room` does it */
enum { SAME_PIECES = 1, WITHIN_IPV6 = 4 }; /* its flags: GSO's size stays; an outer header */

struct xdp_md {
	__u32 data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex;
};

struct __sk_buff {
	__u32 len, pkt_type, mark, queue_mapping, protocol, vlan_present, vlan_tci, vlan_proto;
	__u32 priority, ingress_ifindex, ifindex, tc_index, cb[5], hash, tc_classid, data, data_end;
	__u32 napi_id, family, remote_ip4, local_ip4, remote_ip6[4], local_ip6[4];
	__u32 remote_port, local_port, data_meta;
	__u64 flow_keys, tstamp;
	__u32 wire_len, gso_segs;
	__u64 sk;
	__u32 gso_size;
};

struct bpf_timer {
	__u64 : 64;
	__u64 : 64;
} __attribute__((aligned(8)));

static void *(*const map_lookup)(void *map, const void *key) = (void *)1;
static long (*const map_update)(void *map, const void *key, const void *value, __u64 flags) =
	(void *)2;
static __u64 (*const ktime)(void) = (void *)5;
static long (*const skb_store)(struct __sk_buff *skb, __u32 offset, const void *from, __u32 len,
			       __u64 flags) = (void *)9;
static long (*const clone_redirect)(struct __sk_buff *skb, __u32 ifindex, __u64 flags) =
	(void *)13;
static long (*const redirect)(__u32 ifindex, __u64 flags) = (void *)23;
static long (*const skb_pull)(struct __sk_buff *skb, __u32 len) = (void *)39;
static long (*const adjust_room)(struct __sk_buff *skb, __s32 more, __u32 mode, __u64 flags) =
	(void *)50;
static long (*const ringbuf_output)(void *ringbuf, const void *data, __u64 size, __u64 flags) =
	(void *)130;
static long (*const timer_init)(struct bpf_timer *timer, void *map, __u64 flags) = (void *)169;
static long (*const timer_set_callback)(struct bpf_timer *timer, void *callback) = (void *)170;
static long (*const timer_start)(struct bpf_timer *timer, __u64 nanoseconds, __u64 flags) =
	(void *)171;

#define HTONS(x) ((__u16)__builtin_bswap16(x))
#define NTOHS(x) ((__u16)__builtin_bswap16(x))
#define NTOHL(x) ((__u32)__builtin_bswap32(x))

struct ethernet {
	__u8 target[6], source[6];
	__u16 type;
} PACKED(2);

struct address {
	__u64 high, low; /* network order */
} PACKED(8);

struct ipv6 {
	__u32 version_class_flow;
	__u16 payload;
	__u8 next, hops;
	struct address source, target;
} PACKED(8);

INLINE int is_link_local(const struct address *address)
{
	return (address->high & 0xc0ff) == 0x80fe; /* fe80::/10 */
}

struct udp {
	__u16 source, target, length, checksum;
} PACKED(2);

struct tcp {
	__u16 source, target;
	__u32 sequence, acknowledged;
	__u8 offset, flags;
	__u16 window, checksum, urgent;
} PACKED(4);

/* What all extension headers begin with (RFC 8200 section 4); `length` in 8 bytes, without the first. */
struct extension {
	__u8 next, length, reserved[6];
} PACKED(2);

/* Behind the type of a frame: a VLAN's (IEEE 802.1Q section 9.6). */
struct tag {
	__u16 control, type;
} PACKED(2);

/* Segment routing header (RFC 8754 section 2), up to its segments. */
struct routing {
	__u8 next, length, type, left, last, flags;
	__u16 tag;
} PACKED(8);

enum { TYPE_IPV4 = 0x0800, TYPE_VLAN = 0x8100, TYPE_IPV6 = 0x86dd, TYPE_SERVICE_VLAN = 0x88a8 };
enum { VLAN_NUMBER = 0x0fff }; /* of a tag's `control`; 0: a priority and no VLAN */
enum { NEXT_HOP_OPTIONS = 0, NEXT_TCP = 6, NEXT_UDP = 17, NEXT_IPV6 = 41, NEXT_ROUTING = 43,
       NEXT_FRAGMENT = 44, NEXT_OPTIONS = 60 };
enum { SEGMENT_ROUTING = 4 };
