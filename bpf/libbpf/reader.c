/* SPDX-License-Identifier: MIT */
/*
 * Reader of ELF objects with libelf's names: 64 bits, the byte order of this machine, as a compiler
 * writes them for BPF. What libbpf wants of it for probes in user space is not here and says so.
 *
 * Source: System V ABI, chapters 4 and 5 (Object Files; gabi 4.1); libelf.h for the names.
 */
#define _GNU_SOURCE
#include "gelf.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define BYTE_ORDER_HERE ELFDATA2LSB
#else
#define BYTE_ORDER_HERE ELFDATA2MSB
#endif
#define SECTIONS_MAX SHN_LORESERVE

struct Elf_Scn {
	Elf *elf;
	size_t index;
	Elf64_Shdr *header;
	Elf_Data data;
};

struct Elf {
	char *image;
	size_t size;
	int mapped;
	size_t count;
	Elf_Scn *sections;
};

static int within(const Elf *elf, uint64_t offset, uint64_t size)
{
	return offset <= elf->size && size <= elf->size - offset;
}

/* Whether all sections lie in the file: after that nobody needs to ask again. */
static int read_sections(Elf *elf)
{
	Elf64_Ehdr *head = (Elf64_Ehdr *)elf->image;
	uint64_t at = head->e_shoff;

	if (head->e_shentsize != sizeof(Elf64_Shdr) || head->e_shnum >= SECTIONS_MAX ||
	    head->e_shstrndx >= head->e_shnum || at % _Alignof(Elf64_Shdr) ||
	    !within(elf, at, head->e_shnum * sizeof(Elf64_Shdr)))
		return 0;
	elf->sections = calloc(head->e_shnum, sizeof(*elf->sections));
	if (!elf->sections)
		return 0;
	elf->count = head->e_shnum;
	for (size_t index = 0; index < elf->count; index++) {
		Elf64_Shdr *header = (Elf64_Shdr *)(elf->image + at) + index;
		int absent = header->sh_type == SHT_NOBITS || header->sh_type == SHT_NULL;

		if (!absent && !within(elf, header->sh_offset, header->sh_size))
			return 0;
		elf->sections[index] = (Elf_Scn){
			.elf = elf, .index = index, .header = header,
			.data = {
				.d_buf = absent ? NULL : elf->image + header->sh_offset,
				.d_version = EV_CURRENT,
				.d_size = header->sh_type == SHT_NULL ? 0 : header->sh_size,
				.d_align = header->sh_addralign,
			},
		};
	}
	return 1;
}

static Elf *opened(char *image, size_t size, int mapped)
{
	Elf64_Ehdr *head = (Elf64_Ehdr *)image;
	Elf *elf = calloc(1, sizeof(*elf));

	if (elf) {
		*elf = (Elf){ .image = image, .size = size, .mapped = mapped };
		if ((uintptr_t)image % _Alignof(Elf64_Ehdr) == 0 && size >= sizeof(*head) &&
		    !memcmp(head->e_ident, ELFMAG, SELFMAG) &&
		    head->e_ident[EI_CLASS] == ELFCLASS64 &&
		    head->e_ident[EI_DATA] == BYTE_ORDER_HERE && read_sections(elf))
			return elf;
		free(elf->sections);
		free(elf);
	}
	return NULL;
}

unsigned elf_version(unsigned version)
{
	return version == EV_CURRENT ? EV_CURRENT : EV_NONE;
}

Elf *elf_begin(int file, Elf_Cmd command, Elf *reference)
{
	struct stat about;
	char *image;
	Elf *elf;

	(void)command;
	if (reference || fstat(file, &about) || about.st_size <= 0)
		return NULL;
	image = mmap(NULL, about.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
	if (image == MAP_FAILED)
		return NULL;
	elf = opened(image, about.st_size, 1);
	if (!elf)
		munmap(image, about.st_size);
	return elf;
}

Elf *elf_memory(char *image, size_t size)
{
	return image ? opened(image, size, 0) : NULL;
}

int elf_end(Elf *elf)
{
	if (elf) {
		if (elf->mapped)
			munmap(elf->image, elf->size);
		free(elf->sections);
		free(elf);
	}
	return 0;
}

const char *elf_errmsg(int error)
{
	(void)error;
	return "no ELF object of this machine's kind, or cut short";
}

Elf_Kind elf_kind(Elf *elf)
{
	return elf ? ELF_K_ELF : ELF_K_NONE;
}

int gelf_getclass(Elf *elf)
{
	return elf ? ELFCLASS64 : ELFCLASSNONE;
}

Elf64_Ehdr *elf64_getehdr(Elf *elf)
{
	return elf ? (Elf64_Ehdr *)elf->image : NULL;
}

GElf_Ehdr *gelf_getehdr(Elf *elf, GElf_Ehdr *out)
{
	return elf ? memcpy(out, elf->image, sizeof(*out)) : NULL;
}

int elf_getshdrnum(Elf *elf, size_t *count)
{
	*count = elf ? elf->count : 0;
	return elf ? 0 : -1;
}

int elf_getshdrstrndx(Elf *elf, size_t *index)
{
	*index = elf ? elf64_getehdr(elf)->e_shstrndx : 0;
	return elf ? 0 : -1;
}

Elf_Scn *elf_getscn(Elf *elf, size_t index)
{
	return elf && index < elf->count ? &elf->sections[index] : NULL;
}

Elf_Scn *elf_nextscn(Elf *elf, Elf_Scn *section)
{
	return elf_getscn(elf, section ? section->index + 1 : 1);
}

size_t elf_ndxscn(Elf_Scn *section)
{
	return section ? section->index : SHN_UNDEF;
}

Elf64_Shdr *elf64_getshdr(Elf_Scn *section)
{
	return section ? section->header : NULL;
}

GElf_Shdr *gelf_getshdr(Elf_Scn *section, GElf_Shdr *out)
{
	return section ? memcpy(out, section->header, sizeof(*out)) : NULL;
}

Elf_Data *elf_getdata(Elf_Scn *section, Elf_Data *last)
{
	return section && !last ? &section->data : NULL;
}

Elf_Data *elf_rawdata(Elf_Scn *section, Elf_Data *last)
{
	return elf_getdata(section, last);
}

char *elf_strptr(Elf *elf, size_t section, size_t offset)
{
	Elf_Scn *found = elf_getscn(elf, section);

	if (!found || found->header->sh_type != SHT_STRTAB || offset >= found->data.d_size ||
	    !memchr((char *)found->data.d_buf + offset, 0, found->data.d_size - offset))
		return NULL;
	return (char *)found->data.d_buf + offset;
}

/* For probes in user space, which we have none of: there is nothing to be found. */
int elf_getphdrnum(Elf *elf, size_t *count)
{
	(void)elf, *count = 0;
	return -1;
}

GElf_Phdr *gelf_getphdr(Elf *elf, int index, GElf_Phdr *out)
{
	(void)elf, (void)index, (void)out;
	return NULL;
}

GElf_Sym *gelf_getsym(Elf_Data *data, int index, GElf_Sym *out)
{
	(void)data, (void)index, (void)out;
	return NULL;
}

GElf_Versym *gelf_getversym(Elf_Data *data, int index, GElf_Versym *out)
{
	(void)data, (void)index, (void)out;
	return NULL;
}

GElf_Verdef *gelf_getverdef(Elf_Data *data, int offset, GElf_Verdef *out)
{
	(void)data, (void)offset, (void)out;
	return NULL;
}

GElf_Verdaux *gelf_getverdaux(Elf_Data *data, int offset, GElf_Verdaux *out)
{
	(void)data, (void)offset, (void)out;
	return NULL;
}

size_t gelf_getnote(Elf_Data *data, size_t offset, GElf_Nhdr *out, size_t *name, size_t *content)
{
	(void)data, (void)offset, (void)out, (void)name, (void)content;
	return 0;
}
