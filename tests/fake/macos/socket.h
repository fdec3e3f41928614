/* tests/fake/macos/socket.h - the part of system.h whose names (bind, send, accept) other files may use for their own. */
#ifndef IMP_FAKE_MACOS_SOCKET_H
#define IMP_FAKE_MACOS_SOCKET_H

#include "system.h"

struct sockaddr {
    uint8_t sa_len;
    sa_family_t sa_family;
    char sa_data[14];
};
struct sockaddr_storage {
    uint8_t ss_len;
    sa_family_t ss_family;
    char pad[126];
};
struct in_addr {
    in_addr_t s_addr;
};
struct in6_addr {
    uint8_t s6_addr[16];
};
struct sockaddr_in {
    uint8_t sin_len;
    sa_family_t sin_family;
    in_port_t sin_port;
    struct in_addr sin_addr;
    char sin_zero[8];
};
struct sockaddr_in6 {
    uint8_t sin6_len;
    sa_family_t sin6_family;
    in_port_t sin6_port;
    uint32_t sin6_flowinfo;
    struct in6_addr sin6_addr;
    uint32_t sin6_scope_id;
};
struct addrinfo {
    int ai_flags, ai_family, ai_socktype, ai_protocol;
    socklen_t ai_addrlen;
    char *ai_canonname;
    struct sockaddr *ai_addr;
    struct addrinfo *ai_next;
};
struct iovec {
    void *iov_base;
    size_t iov_len;
};
typedef struct fd_set {
    int32_t fds_bits[32];
} fd_set;
#define AF_UNSPEC                  0
#define AF_UNIX                    1
#define AF_INET                    2
#define AF_INET6                   30
#define SOCK_STREAM                1
#define SOL_SOCKET                 0xffff
#define SO_REUSEADDR               4
#define SO_SNDBUF                  0x1001
#define SO_SNDTIMEO                0x1005
#define SO_RCVTIMEO                0x1006
#define SO_ERROR                   0x1007
#define SO_NOSIGPIPE               0x1022
#define SOMAXCONN                  128
#define IPPROTO_TCP                6
#define IPPROTO_IPV6               41
#define IPV6_V6ONLY                27
#define TCP_NODELAY                1
#define INADDR_ANY                 0u
#define INADDR_LOOPBACK            0x7f000001u
#define INET_ADDRSTRLEN            16
#define INET6_ADDRSTRLEN           46
#define AI_PASSIVE                 1
#define AI_NUMERICHOST             4
#define AI_NUMERICSERV             0x1000
#define NI_NUMERICHOST             2
#define NI_NUMERICSERV             8
#define SHUT_RD                    0
#define SHUT_WR                    1
#define SHUT_RDWR                  2
#define MSG_PEEK                   2
#define MSG_DONTWAIT               0x80
#define IN6_IS_ADDR_UNSPECIFIED(a) (memcmp((a)->s6_addr, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16) == 0)
#define IN6_IS_ADDR_LOOPBACK(a)    (memcmp((a)->s6_addr, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\1", 16) == 0)
#define IN6_IS_ADDR_V4MAPPED(a)    (memcmp((a)->s6_addr, "\0\0\0\0\0\0\0\0\0\0\xff\xff", 12) == 0)
int socket(int, int, int);
int socketpair(int, int, int, int[2]);
int bind(int, const struct sockaddr *, socklen_t);
int listen(int, int);
int accept(int, struct sockaddr *, socklen_t *);
int connect(int, const struct sockaddr *, socklen_t);
int shutdown(int, int);
int getsockname(int, struct sockaddr *, socklen_t *);
int getpeername(int, struct sockaddr *, socklen_t *);
int setsockopt(int, int, int, const void *, socklen_t);
int getsockopt(int, int, int, void *, socklen_t *);
ssize_t send(int, const void *, size_t, int);
ssize_t recv(int, void *, size_t, int);
int getaddrinfo(const char *, const char *, const struct addrinfo *, struct addrinfo **);
void freeaddrinfo(struct addrinfo *);
const char *gai_strerror(int);
int getnameinfo(const struct sockaddr *, socklen_t, char *, socklen_t, char *, socklen_t, int);
int inet_pton(int, const char *, void *);
const char *inet_ntop(int, const void *, char *, socklen_t);
#define htons(x) __builtin_bswap16(x)
#define ntohs(x) __builtin_bswap16(x)
#define htonl(x) __builtin_bswap32(x)
#define ntohl(x) __builtin_bswap32(x)

#endif
