/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * SipHash-2-4: a 64-bit tag under a 128-bit key.
 * Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012.
 */
#pragma once
#include "kernel.h"

struct sip {
	__u64 a, b, c, d;
};

#define ROTATE(x, n) (((x) << (n)) | ((x) >> (64 - (n))))

INLINE void sip_round(struct sip *v)
{
	v->a += v->b; v->b = ROTATE(v->b, 13) ^ v->a; v->a = ROTATE(v->a, 32);
	v->c += v->d; v->d = ROTATE(v->d, 16) ^ v->c;
	v->a += v->d; v->d = ROTATE(v->d, 21) ^ v->a;
	v->c += v->b; v->b = ROTATE(v->b, 17) ^ v->c; v->c = ROTATE(v->c, 32);
}

/* Tag of `count` whole words; `count` is known when compiled. */
INLINE __u64 siphash(const __u64 key[2], const __u64 *words, int count)
{
	struct sip v = { key[0] ^ 0x736f6d6570736575ULL, key[1] ^ 0x646f72616e646f6dULL,
			 key[0] ^ 0x6c7967656e657261ULL, key[1] ^ 0x7465646279746573ULL };
	__u64 last = (__u64)(count * 8) << 56;

#pragma unroll
	for (int i = 0; i < count; i++) {
		v.d ^= words[i];
		sip_round(&v);
		sip_round(&v);
		v.a ^= words[i];
	}
	v.d ^= last;
	sip_round(&v);
	sip_round(&v);
	v.a ^= last;
	v.c ^= 0xff;
	sip_round(&v);
	sip_round(&v);
	sip_round(&v);
	sip_round(&v);
	return v.a ^ v.b ^ v.c ^ v.d;
}
