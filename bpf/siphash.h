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

/*
 * A round, in assembly for the order alone: each value is turned where it is, as soon as it is there
 * (BPF has no rotation). The same in C took a quarter longer as it was compiled, and this is most of
 * what a forged hello takes.
 */
#define ADD(x, y) "%[" #x "] += %[" #y "]\n"
#define XOR(x, y) "%[" #x "] ^= %[" #y "]\n"
#define ROTATE(x, n)                                    \
	"%[t] = %[" #x "]\n" "%[t] >>= 64 - " #n "\n" \
	"%[" #x "] <<= " #n "\n" "%[" #x "] |= %[t]\n"

INLINE void sip_round(struct sip *v)
{
	__u64 t;

	asm(ADD(a, b) ROTATE(b, 13) XOR(b, a) ROTATE(a, 32)
	    ADD(c, d) ROTATE(d, 16) XOR(d, c)
	    ADD(a, d) ROTATE(d, 21) XOR(d, a)
	    ADD(c, b) ROTATE(b, 17) XOR(b, c) ROTATE(c, 32)
	    : [a] "+r"(v->a), [b] "+r"(v->b), [c] "+r"(v->c), [d] "+r"(v->d), [t] "=&r"(t));
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
