/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Who may send into the mesh's addresses: members, at their rate, through neighbours. Everything
 * else on the interface passes, except sources that policy denies, and routing headers: what is
 * within or behind one goes to other addresses than those that were looked at.
 */
#pragma once
#include "maps.h"

INLINE int denied_source(struct address source)
{
	struct x0_prefix prefix = { .prefix = 128, .source = source };
	__u32 *denied = map_lookup(&x0_sources, &prefix);

	return denied && *denied;
}

/* GCRA: a packet conforms if it is not more than the burst ahead of its time. */
INLINE int over_rate(struct x0_member *member)
{
	__u64 now, due = member->due_ns;

	if (!member->cost_ns)
		return 0;
	now = ktime();
	if ((__s64)(due - now) > (__s64)member->burst_ns)
		return 1;
	member->due_ns = ((__s64)(due - now) > 0 ? due : now) + member->cost_ns;
	return 0;
}

INLINE struct x0_filter *in_force(void)
{
	__u32 zero = 0;
	struct x0_filter *filter = map_lookup(&x0_filters, &zero);

	return filter && filter->flags & X0_FILTER_ON ? filter : NULL;
}

INLINE int leads_on(__u8 next)
{
	return next == NEXT_HOP_OPTIONS || next == NEXT_ROUTING || next == NEXT_FRAGMENT ||
	       next == NEXT_OPTIONS;
}

/*
 * Whether a packet may have a routing header: the kernel takes headers in any order. It may where
 * options go on for too long, or behind a fragment header, as the rest may be in another fragment.
 */
INLINE int may_be_led(const struct ipv6 *ipv6, const void *end)
{
	const struct extension *header = (const void *)(ipv6 + 1);
	__u8 next = ipv6->next;

#pragma unroll
	for (int steps = 0; steps < X0_OPTIONS; steps++) {
		if (!leads_on(next))
			return 0;
		if (next == NEXT_ROUTING || (const void *)(header + 1) > end)
			return 1;
		if (next == NEXT_FRAGMENT)
			return leads_on(header->next);
		next = header->next;
		header += header->length + 1;
	}
	return leads_on(next);
}

INLINE enum x0_reason admit(__u32 ifindex, const struct ethernet *ethernet,
			    const struct ipv6 *ipv6, const void *end)
{
	struct x0_filter *filter = in_force();
	struct x0_member *member;
	struct address source = ipv6->source;

	if (!filter)
		return UNCOUNTED;
	if (filter->flags & X0_FILTER_SOURCES && denied_source(source))
		return X0_FILTER_SOURCE;
	if ((source.high & filter->mask) != filter->prefix) {
		if ((ipv6->target.high & filter->mask) == filter->prefix || may_be_led(ipv6, end))
			return X0_FILTER_FOREIGN;
		return UNCOUNTED;
	}
	if (filter->flags & X0_FILTER_NEIGHBOURS && !link_at(ifindex, ethernet->source))
		return X0_FILTER_STRANGER;
	member = map_lookup(&x0_members, &source);
	if (!member)
		return X0_FILTER_NO_MEMBER;
	if (member->denied || over_rate(member)) {
		__sync_fetch_and_add(&member->dropped, 1);
		return member->denied ? X0_FILTER_DENIED : X0_FILTER_RATE;
	}
	return X0_FILTER_PASSED;
}

/* IPv4 carries no mesh data: only denied sources are looked for, as ::ffff:a.b.c.d. */
INLINE enum x0_reason admit_ipv4(__u32 source)
{
	struct x0_filter *filter = in_force();
	struct address mapped = { .high = 0, .low = 0xffff0000ULL | (__u64)source << 32 };

	if (!filter || !(filter->flags & X0_FILTER_SOURCES))
		return UNCOUNTED;
	return denied_source(mapped) ? X0_FILTER_SOURCE : UNCOUNTED;
}
