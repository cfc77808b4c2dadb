/*
 * frame LINK: sends each line of standard input, an Ethernet frame in hexadecimal, by LINK as it is. Busybox has nothing that does.
 */
#include <ctype.h>
#include <net/if.h>
#include <netpacket/packet.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

/* What fits into an Ethernet frame with two tags. */
#define MOST 1522

/* The octets that a line of hexadecimal digits stands for; -1: it stands for none, or for too many. */
static int octets(const char *line, unsigned char *into)
{
	int length = 0;

	while (isxdigit((unsigned char)line[0])) {
		unsigned int octet;

		if (length == MOST || !isxdigit((unsigned char)line[1]) || sscanf(line, "%2x", &octet) != 1)
			return -1;
		into[length++] = (unsigned char)octet;
		line += 2;
	}
	return *line == '\n' || *line == '\0' ? length : -1;
}

int main(int argc, char **argv)
{
	struct sockaddr_ll to = { .sll_family = AF_PACKET };
	/* Two digits each, the end of the line and that of the text. */
	char line[2 * MOST + 2];
	unsigned char frame[MOST];
	int to_link = socket(AF_PACKET, SOCK_RAW, 0);

	if (argc != 2) {
		fprintf(stderr, "usage: frame LINK <FRAMES\n");
		return 2;
	}
	to.sll_ifindex = (int)if_nametoindex(argv[1]);
	if (to_link < 0 || to.sll_ifindex == 0) {
		perror(argv[1]);
		return 1;
	}
	while (fgets(line, sizeof line, stdin) != NULL) {
		int length = octets(line, frame);

		if (length < 14) {
			fprintf(stderr, "frame: must be 14 to %d octets in hexadecimal: %s\n", MOST, line);
			return 1;
		}
		if (sendto(to_link, frame, (size_t)length, 0, (struct sockaddr *)&to, sizeof to) != length) {
			perror("sendto");
			return 1;
		}
	}
	return ferror(stdin) ? 1 : 0;
}
