/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Who may send into the mesh's addresses: members, at their rate, through neighbours. Everything
 * else on the interface passes, except sources that policy denies.
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

INLINE enum x0_reason admit(__u32 ifindex, const struct ethernet *ethernet,
			    const struct ipv6 *ipv6)
{
	__u32 zero = 0;
	struct x0_filter *filter = map_lookup(&x0_filters, &zero);
	struct x0_member *member;
	struct address source = ipv6->source;

	if (!filter || !(filter->flags & X0_FILTER_ON))
		return UNCOUNTED;
	if (filter->flags & X0_FILTER_SOURCES && denied_source(source))
		return X0_FILTER_SOURCE;
	if ((source.high & filter->mask) != filter->prefix) {
		if ((ipv6->target.high & filter->mask) == filter->prefix)
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
	__u32 zero = 0;
	struct x0_filter *filter = map_lookup(&x0_filters, &zero);
	struct address mapped = { .high = 0, .low = 0xffff0000ULL | (__u64)source << 32 };

	if (!filter || !(filter->flags & X0_FILTER_ON) || !(filter->flags & X0_FILTER_SOURCES))
		return UNCOUNTED;
	return denied_source(mapped) ? X0_FILTER_SOURCE : UNCOUNTED;
}
