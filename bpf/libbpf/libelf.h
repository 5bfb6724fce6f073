/* SPDX-License-Identifier: MIT */
/*
 * As much of libelf's interface as libbpf calls. The library that this project ships is built with
 * reader.c instead of libelf: that one is LGPL or GPL, and not on every machine.
 */
#pragma once
#include <elf.h>
#include <stddef.h>
#include <stdint.h>

typedef struct Elf Elf;
typedef struct Elf_Scn Elf_Scn;
typedef struct {
	void *d_buf;
	int d_type;
	unsigned d_version;
	size_t d_size;
	int64_t d_off;
	size_t d_align;
} Elf_Data;
typedef enum { ELF_K_NONE, ELF_K_ELF = 3 } Elf_Kind;
typedef enum { ELF_C_READ = 1, ELF_C_READ_MMAP = 8 } Elf_Cmd;

unsigned elf_version(unsigned version);
Elf *elf_begin(int file, Elf_Cmd command, Elf *reference);
Elf *elf_memory(char *image, size_t size);
int elf_end(Elf *elf);
const char *elf_errmsg(int error);
Elf_Kind elf_kind(Elf *elf);
Elf64_Ehdr *elf64_getehdr(Elf *elf);
Elf64_Shdr *elf64_getshdr(Elf_Scn *section);
int elf_getshdrnum(Elf *elf, size_t *count);
int elf_getshdrstrndx(Elf *elf, size_t *index);
int elf_getphdrnum(Elf *elf, size_t *count);
Elf_Scn *elf_getscn(Elf *elf, size_t index);
Elf_Scn *elf_nextscn(Elf *elf, Elf_Scn *section);
size_t elf_ndxscn(Elf_Scn *section);
Elf_Data *elf_getdata(Elf_Scn *section, Elf_Data *last);
Elf_Data *elf_rawdata(Elf_Scn *section, Elf_Data *last);
char *elf_strptr(Elf *elf, size_t section, size_t offset);
